"""`flux-lora dataset`: what a folder of pictures, or all the datasets of a job, come to, before anything is trained."""

import argparse
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

from .data.report import CacheState
from .data.sample import Sample
from .errors import JobError
from .job import TrainJob
from .job_file import load_job, parse_part
from .progress import ProgressBar
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec

log = logging.getLogger(__name__)

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
    from .data.small_buckets import settle_small_buckets
    from .flux.flavours import FLAVOURS

    if args.sheet and args.sheet.suffix.lower() not in SHEET_SUFFIXES:
        raise JobError(f"--sheet {args.sheet} is no picture's name; end it in {' or '.join(SHEET_SUFFIXES)}")
    of_folder = args.path.is_dir()
    datasets, flavour, batch_size, accumulation = _of_folder(args) if of_folder else _of_job(args)
    cache_dir = (args.cache or args.out / "cache").absolute()
    bar = ProgressBar()
    try:
        index = index_datasets(
            datasets,
            FLAVOURS[flavour],
            cache_dir,
            lambda done, total: bar({"event": "phase", "phase": "look at files", "done": done, "total": total}),
        )
    finally:
        bar.close()
    index = settle_small_buckets(index, datasets, batch_size)
    encoded = None if of_folder else partial(_encoded, load_job(args.path), cache_dir)
    report = make_report(index, datasets, batch_size, accumulation=accumulation, encoded=encoded)
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


def _encoded(job: TrainJob, cache_dir: Path, samples: Sequence[Sample]) -> CacheState | None:
    """What a run of this job finds in the cache; None, with a warning, where the base's files are not there."""
    from .data.encode import open_caches
    from .flux.flavours import FLAVOURS
    from .flux.resolve import resolve_files
    from .setup import encoding_of

    try:
        files = resolve_files(job.base)
    except JobError as error:
        log.warning("the cache is not looked into: %s", error)
        return None
    flavour, tiled = FLAVOURS[job.base.model_flavour], job.base.vae_enable_tiling
    caches = open_caches(cache_dir, samples, files, flavour, encoding_of(job.base), tiled=tiled)
    captions = {caption for sample in samples for caption in sample.captions}
    (latents, of_latents), (texts, of_captions), _ = caches.needed(samples, captions)
    there = [sum(name in shards for name in names) for shards, names in ((latents, of_latents), (texts, of_captions))]
    return CacheState(there[0], len(of_latents), there[1], len(of_captions))


def _choices(spec: type[BaseModelSpec | DatasetSpec], field: str) -> list[str]:
    return list(get_args(spec.model_fields[field].annotation))
