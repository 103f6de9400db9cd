"""The `gsq` command: the only place that knows flags and exit codes."""
