"""`flux-lora runs`: what has been trained below a folder, and how far each is."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

from .runs import FAILED, list_runs

TEXT = "list the runs below --out: state, steps, losses, the one that changed last first"
COLUMNS = ("run", "state", "steps", "loss", "held out", "base", "changed")


def runs(args: argparse.Namespace) -> dict[str, Any]:
    """The summaries of all runs, as `docs/http.md` has them."""
    return {"runs": [summary._asdict() for summary in list_runs(args.out)]}


def show(report: dict[str, Any]) -> None:
    """A table, and under it why runs have failed."""
    rows = [COLUMNS, *map(_row, report["runs"])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for run in report["runs"]:
        if run["state"] == FAILED:
            print(f"\n{run['id']}: {run['message']}")


def _row(run: dict[str, Any]) -> Sequence[str]:
    return (
        run["id"],
        run["state"],
        f"{run['step']}/{run['steps'] or '?'}",
        _loss(run["loss"]),
        _loss(run["held_out"]),
        run["base"],
        time.strftime("%Y-%m-%d %H:%M", time.localtime(run["changed"])),
    )


def _loss(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4f}"
