"""Tasks as YAML files: `task: cola` in a configuration fills in `data` and `metric`."""
