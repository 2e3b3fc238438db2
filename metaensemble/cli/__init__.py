"""The command line: one file per command."""

from metaensemble.cli.main import main

__all__ = ["main"]
