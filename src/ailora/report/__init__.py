"""One self-contained HTML page of studies, runs and analyses."""
