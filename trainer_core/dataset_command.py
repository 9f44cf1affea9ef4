"""`flux-lora dataset`: what a folder of pictures, or all the datasets of a job, come to, before anything is trained."""

import argparse
from pathlib import Path
from typing import Any, get_args

from .errors import JobError
from .job_file import load_job, parse_part
from .progress import ProgressBar
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec

Report = dict[str, Any]

FOLDER_OPTIONS = ("flavour", "resolution", "batch_size", "caption_strategy", "instance_prompt")
SHEET_SUFFIXES = (".png", ".jpg")
TEXT = "what a folder or a job's datasets come to: buckets, captions, what is left out and why, likely faults"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """PATH and what a folder cannot say of itself. Nothing has a default here: a job brings its own values."""
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder of pictures, or a job.json")
    parser.add_argument("--flavour", choices=_choices(BaseModelSpec, "model_flavour"), help="the base (default: dev)")
    parser.add_argument("--resolution", metavar="N[,N]", help="one or several (default: what suits the base)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples in one forward pass (default: 1)")
    parser.add_argument("--caption-strategy", choices=_choices(DatasetSpec, "caption_strategy"), help="default: textfile")
    parser.add_argument("--instance-prompt", metavar="TEXT", help="every picture's caption, with instanceprompt")
    parser.add_argument("--sheet", type=Path, metavar="FILE.png", help="draw each bucket with its pictures")


def dataset(args: argparse.Namespace) -> Report:
    """The report, and the sheet where one is asked for; JobError lists what the user must decide."""
    from .data.index import index_datasets
    from .data.report import make_report
    from .data.sheet import draw_sheet
    from .flux.flavours import FLAVOURS

    if args.sheet and args.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise JobError(f"--sheet {args.sheet} is no picture's name; end it in {' or '.join(SHEET_SUFFIXES)}")
    datasets, flavour, batch_size, accumulation = _of_folder(args) if args.path.is_dir() else _of_job(args)
    bar = ProgressBar()
    try:
        index = index_datasets(
            datasets,
            FLAVOURS[flavour],
            (args.cache or args.out / "cache").absolute(),
            lambda done, total: bar({"event": "phase", "phase": "look at files", "done": done, "total": total}),
        )
    finally:
        bar.close()
    report = make_report(index, datasets, batch_size, accumulation=accumulation)
    if args.sheet:
        args.sheet.parent.mkdir(parents=True, exist_ok=True)
        draw_sheet(index).save(args.sheet)
    return {"base": flavour, **report.to_json(), "text": f"for {flavour}\n\n{report.describe()}"}


def show(report: Report) -> None:
    print(report["text"])


def _of_folder(args: argparse.Namespace) -> tuple[tuple[DatasetSpec, ...], str, int, int]:
    given = {
        "id": args.path.resolve().name or "pictures",
        "instance_data_dir": str(args.path),
        "resolution": args.resolution,
        "caption_strategy": args.caption_strategy,
        "instance_prompt": args.instance_prompt,
    }
    values = {name: value for name, value in given.items() if value is not None}
    if args.batch_size is not None and args.batch_size < 1:
        raise JobError(f"--batch-size is {args.batch_size}; give 1 or more")
    return parse_part("datasets", [values], "flux-lora dataset"), args.flavour or "dev", args.batch_size or 1, 1


def _of_job(args: argparse.Namespace) -> tuple[tuple[DatasetSpec, ...], str, int, int]:
    given = [f"--{name.replace('_', '-')}" for name in FOLDER_OPTIONS if getattr(args, name) is not None]
    if not args.path.exists():
        raise JobError(f"there is no folder and no file {args.path.absolute()}; give a folder of pictures or a job.json")
    if given:
        raise JobError(f"{args.path} is a job, whose own settings count; take out {', '.join(given)}")
    job = load_job(args.path)
    return (
        job.datasets,
        job.base.model_flavour,
        job.training.train_batch_size,
        job.training.gradient_accumulation_steps,
    )


def _choices(spec: type[BaseModelSpec | DatasetSpec], field: str) -> list[str]:
    return list(get_args(spec.model_fields[field].annotation))
