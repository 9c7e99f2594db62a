"""The `invdiff` command."""
