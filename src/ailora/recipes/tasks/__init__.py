"""Tasks as data: `task: cola` in a configuration fills in where the data are and how they are scored."""
