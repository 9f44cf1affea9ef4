"""The commands that make a job from something else: `flux-lora import-simpletuner` and `export-job`, and `run` on a workflow.

The report is for people and the job for files: with --out the report is on standard output; without, the job is, alone, and
the report on standard error.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .errors import JobError
from .graph import is_graph, parse_graph, read_graph
from .graph_job import ComfyFolders, export_job
from .importers.simpletuner import import_config
from .importers.simpletuner_draft import describe, to_json
from .importers.simpletuner_model import Swaps
from .job import TrainJob
from .job_file import dump_job, load_job
from .job_paths import network_wishes
from .writing import write_atomically

Report = dict[str, Any]

IMPORT_TEXT = "make a job of a SimpleTuner configuration, and say what became of each option"
EXPORT_TEXT = "make a job of a ComfyUI workflow, as its Train LoRA node would"
FILES = {  # option -> help
    "transformer": "the FLUX transformer, in place of what the configuration names",
    "vae": "the VAE",
    "clip_l": "CLIP-L",
    "t5": "T5 v1.1 XXL",
    "clip_tokenizer": "the folder of CLIP's tokenizer",
    "t5_tokenizer": "the folder of T5's tokenizer",
    "assistant_lora": "schnell's training adapter",
}


def add_import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="config.json, .toml or .env, or its folder")
    parser.add_argument("datasets", type=Path, nargs="?", metavar="BACKENDS.json", help="default: what CONFIG names")
    parser.add_argument("--out", type=Path, metavar="JOB.json", help="write the job there (default: print it)")
    parser.add_argument("--base", choices=["pico"], default="", help="train on the built-in base, to try it")
    for name, text in FILES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", default="", metavar="PATH", help=text)
    parser.add_argument("--allow-download", action="store_true", help="hub ids may be downloaded when the job runs")
    parser.add_argument("--skip-refused", action="store_true", help="make the job without what is refused")


def import_simpletuner(args: argparse.Namespace) -> Report:
    """The job with the report; JobError holds the report when something is refused."""
    swaps = Swaps(args.base, *(getattr(args, name) for name in FILES), args.allow_download)
    found = import_config(args.config, args.datasets, swaps, partly=args.skip_refused)
    text = describe(found.notes)
    if found.job is None:
        raise JobError(f"{text}\n\nno job is made: correct what is refused, or leave it out with --skip-refused")
    out = f" --out {found.output_dir}" if found.output_dir else ""
    written = str(args.out.absolute()) if args.out else ""
    report = {"job": json.loads(dump_job(found.job)), "notes": to_json(found.notes), "text": text, "written": written}
    return _written(found.job, args.out, report | {"next": f"flux-lora run {args.out or 'JOB.json'}{out}"})


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("workflow", type=Path, metavar="WORKFLOW.json", help="as ComfyUI saves it, or its Export (API)")
    parser.add_argument("--out", type=Path, metavar="JOB.json", help="write the job there (default: print it)")
    add_folders(parser)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """Where the files are that a workflow names."""
    parser.add_argument("--comfyui", type=Path, metavar="DIR", help="ComfyUI's folder, for the files that a workflow names")
    parser.add_argument("--models", type=Path, action="append", metavar="DIR", help="a folder of models that lies elsewhere")
    parser.add_argument("--node", default="", metavar="ID", help="which Train LoRA node, where a workflow has several")


def export(args: argparse.Namespace) -> Report:
    job = export_job(read_graph(args.workflow), _folders(args), args.node)
    written = str(args.out.absolute()) if args.out else ""
    report = {"job": json.loads(dump_job(job)), "text": "", "written": written}
    return _written(job, args.out, report | {"next": f"flux-lora run {args.out or 'JOB.json'}"})


def read_job(path: Path, args: argparse.Namespace) -> TrainJob:
    """The job of a file: one itself, or a workflow of ComfyUI's."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return load_job(path)  # says what is wrong
    if not is_graph(data):
        return load_job(path)
    job = export_job(parse_graph(data, str(path)), _folders(args), args.node)
    wanted = network_wishes(job)
    if wanted and not args.allow_network:
        raise JobError(
            f"{path}: {', '.join(wanted)} is on, and a workflow may be a stranger's; `flux-lora export-job` shows what it "
            "would do, and --allow-network lets it"
        )
    return job


def _folders(args: argparse.Namespace) -> ComfyFolders:
    return ComfyFolders(args.comfyui, tuple(args.models or ()))


def show(report: Report) -> None:
    if not report["written"]:
        print(report["text"], file=sys.stderr)
        print(json.dumps(report["job"], indent=2, ensure_ascii=False))
        return
    print("\n\n".join(filter(None, (report["text"], f"job   {report['written']}\nnext  {report['next']}"))))


def _written(job: TrainJob, path: Path | None, report: Report) -> Report:
    if path:
        write_atomically(path.absolute(), dump_job(job).encode())
    return report
