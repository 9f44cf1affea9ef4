"""Faults, tried: what docs/faults.md promises is shown by commands of this package, `python -m tests.faults --help`."""
