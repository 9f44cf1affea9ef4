"""`flux-lora export-csv`: the losses of a run as a table, a line a step, for spreadsheets and plots of one's own.

It is made from the events, so it works on a run that is still going, or that failed. A step that was done again after an
interruption stands there once, as it was done last.
"""

import argparse
import csv
import io
import sys
from pathlib import Path
from typing import Any

from .errors import JobError
from .events import EventReader
from .run_dir import RunDir
from .writing import write_atomically

TEXT = "write the losses of a run as a table: step, loss, learning rate, gradient norm, seconds, held-out loss"
COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "seconds", "held_out_loss")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="write it there (default: print it)")


def export(args: argparse.Namespace) -> dict[str, Any]:
    run_dir = RunDir(args.run_dir.absolute())
    if not run_dir.events_path.exists():
        raise JobError(f"{run_dir.root} is not a run folder: it has no events.jsonl; give the folder that `run` printed")
    rows = rows_of(run_dir)
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    if args.out:
        write_atomically(args.out.absolute(), text.getvalue().encode())
    return {"rows": len(rows), "written": str(args.out.absolute()) if args.out else "", "text": text.getvalue()}


def show(report: dict[str, Any]) -> None:
    if report["written"]:
        print(f"{report['rows']} steps in {report['written']}")
    else:
        sys.stdout.write(report["text"])


def rows_of(run_dir: RunDir) -> list[dict[str, Any]]:
    """A row a step, in their order; the held-out loss stands in the rows of the steps after which it was measured."""
    rows: dict[int, dict[str, Any]] = {}
    for event in EventReader(run_dir.events_path).new():
        if event["event"] == "step":
            rows[event["step"]] = {name: event[name] for name in COLUMNS if name in event}
        elif event["event"] == "evaluation":
            row = rows.setdefault(event["step"], {"step": event["step"]})
            row["held_out_loss"] = event["loss"]
        elif event["event"] == "started":
            rows = {step: row for step, row in rows.items() if step <= event["resumed_from"]}
    return [rows[step] for step in sorted(rows)]
