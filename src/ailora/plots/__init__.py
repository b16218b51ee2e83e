"""Charts as data, and their matplotlib and plotly backends."""
