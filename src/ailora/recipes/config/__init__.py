"""The sections and keys of a run configuration: read, completed, validated."""
