"""Charts as plain data, and their matplotlib and Plotly backends."""
