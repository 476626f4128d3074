"""The `ditf-probe` command: one file per verb."""

from ditf_probe.commands.main import main

__all__ = ["main"]
