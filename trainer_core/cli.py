"""`flux-lora`: the trainer on the command line.

Exit codes: 0 done, 2 wrong input (the message says what to mend), 3 stopped and resumable, 1 anything else. With --json the
last line of standard output is one JSON object, also when the command fails; the progress bar is on standard error.
"""

import argparse
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from . import csv_command, dataset_command, evaluate_command, job_commands, lora_commands, publish, runs_command
from .commands import COMMANDS, make_command
from .errors import JobError, StopRequested
from .job import TrainJob
from .job_changes import Change, allowed_changes
from .job_file import dump_job, load_job
from .launched import speaks
from .run_dir import RunDir, run_dir_for
from .uncollected import uncollected

DONE, FAILED, WRONG_INPUT, STOPPED = 0, 1, 2, 3

log = logging.getLogger(__name__)

Report = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    args = _parser().parse_args(arguments)
    logging.captureWarnings(True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files that are no text
    try:
        report, code = args.command(args), DONE
    except JobError as error:
        report, code = {"error": str(error)}, WRONG_INPUT
    except StopRequested as stop:
        report, code = {"stopped_at": stop.step, "run_dir": str(stop.run_dir)}, STOPPED
    if not speaks():
        return code
    if code == WRONG_INPUT:
        print(report["error"], file=sys.stderr)
    if args.json:
        print(json.dumps(report | {"exit_code": code}, ensure_ascii=False), flush=True)
    elif code == DONE:
        args.show(report)
    elif code == STOPPED:
        print(f"stopped and saved at step {report['stopped_at']}; go on with: flux-lora resume {report['run_dir']}")
    return code


def _demo(args: argparse.Namespace) -> Report:
    from .demo import demo_job, style_shares

    job = demo_job()
    if args.print_job:
        return {"job": json.loads(dump_job(job))}
    report = _train(job, run_dir_for(job, args.out), args)
    return report | style_shares(report)


def _run(args: argparse.Namespace) -> Report:
    job = job_commands.read_job(args.job, args)
    return _train(job, run_dir_for(job, args.out), args)


def _resume(args: argparse.Namespace) -> Report:
    run_dir = RunDir(args.run_dir.absolute())
    if not run_dir.job_path.exists():
        raise JobError(f"{run_dir.root} is not a run folder: it has no job.json; give the folder that `run` printed")
    if args.job is None:
        return _train(run_dir.job(), run_dir, args)
    job = load_job(args.job)
    return _train(job, run_dir, args, changes=allowed_changes(run_dir.job(), job))


def _ask(args: argparse.Namespace) -> Report:
    run_dir, command = RunDir(args.run_dir.absolute()), make_command(args.wish, args.prompt)
    if not run_dir.is_running():
        raise JobError(f"no process trains in {run_dir.root}; start it with `flux-lora resume`")
    run_dir.ask(*command)
    return {"run_dir": str(run_dir.root), "asked": args.wish}


def _check(args: argparse.Namespace) -> Report:
    from .course import order_of
    from .data.index import count_buckets
    from .helpers import count_devices
    from .launch import check_shared, one_of
    from .plan.chart import draw_plan
    from .plan.plan import describe, make_plan
    from .plan.probe import seconds_per_step
    from .setup import prepare

    job = job_commands.read_job(args.job, args)
    setup = prepare(job, (args.cache or args.out / "cache").absolute())
    count = count_devices(job.training.num_devices, job.training.device)
    check_shared(job, count)
    own = one_of(setup, count)
    plan = make_plan(own, seconds_per_step=seconds_per_step(own) if args.probe else None)
    if args.chart:
        draw_plan(args.chart, plan)
    batches = setup.num_steps * job.training.gradient_accumulation_steps
    run_dir = run_dir_for(job, args.out)
    return {
        "run_dir": str(run_dir.root.absolute()),
        "finished": run_dir.result() is not None,
        "device": str(setup.device),
        "pictures": len(setup.samples),
        "buckets": count_buckets(setup.samples),
        "steps": setup.num_steps,
        "epochs": round(order_of(job, setup.samples).epochs(batches), 2),
        "routes": [f"{span.ratio:.0%} of the image tokens skip layers {span.first} to {span.last}" for span in setup.spans],
        "adapted_layers": len(setup.modules),
        "trainable_parameters": setup.num_parameters,
        "prompts": [shot.prompt for shot in setup.shots],
        "plan": plan.to_json(),
        "plan_text": describe(plan),
    }


def _compare(args: argparse.Namespace) -> Report:
    from .compare import compare

    run_dir = RunDir(args.run_dir.absolute())
    if not run_dir.manifest_path.exists():
        raise JobError(f"{run_dir.root} is not a run folder: it has no manifest.json; give the folder that `run` printed")
    choices = [which for which in args.checkpoints.replace(",", " ").split() if which]
    try:
        strengths = [float(strength) for strength in args.strengths.replace(",", " ").split()]
    except ValueError:
        raise JobError(f"--strengths {args.strengths!r} are no numbers; write them as 0.8, 1.0") from None
    cache_dir = (args.cache or args.out / "cache").absolute()
    return compare(run_dir, choices, strengths or [1.0], args.grid, cache_dir)


def _show_compared(report: Report) -> None:
    print(report["text"])
    print(f"grid  {report['grid']}")


def _inspect(args: argparse.Namespace) -> Report:
    from .adapter.lora_file import inspect_lora

    if not args.lora.is_file():
        raise JobError(f"there is no file {args.lora}")
    return inspect_lora(args.lora)


def _train(job: TrainJob, run_dir: RunDir, args: argparse.Namespace, changes: Sequence[Change] = ()) -> Report:
    """Train the job in its folder; what is finished is returned as it is, unless its job changes."""
    run_dir = RunDir(run_dir.root.absolute())
    if not changes:
        run_dir.check_job(job)
        finished = run_dir.intact_result()
        if finished is not None:
            log.info("%s is finished already", run_dir.root)
            return finished
    if not (job.base.allow_download or job.publishing.push_to_hub):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no network unless asked for: nothing here may download by itself
    with uncollected():  # the libraries take a second less, of twelve
        from .launch import launch

    cache_dir = (args.cache or args.out / "cache").absolute()
    return launch(job, run_dir, cache_dir, changes, watch_stdin=args.watch_stdin)


def _show_trained(report: Report) -> None:
    if "job" in report:
        print(json.dumps(report["job"], indent=2, ensure_ascii=False))
        return
    print(f"trained {report['steps']} steps in {report['train_seconds']:.0f} s ({report['total_seconds']:.0f} s in all)")
    if "style_share_after" in report:
        before, after = report["style_share_before"], report["style_share_after"]
        print(f"style         {before:.0%} of subjects it never saw came out in the style before, {after:.0%} after")
    print(f"LoRA          {report['lora']} ({report['verified_keys']} keys, all as ComfyUI reads them)")
    if report["before_after"]:
        print(f"before/after  {report['before_after']}")
    print(f"loss curve    {report['loss_curve']}")
    print(f"run folder    {report['run_dir']}")


def _show_checked(report: Report) -> None:
    _show_fields({name: value for name, value in report.items() if name not in ("plan", "plan_text")})
    print(report["plan_text"])


def _show_fields(report: Report) -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, entry in value.items():
                text = str(entry)
                print(f"  {key:<50} {text if len(text) <= 100 else text[:100] + ' ...'}")
        else:
            print(f"{name + ':':<22} {value}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flux-lora", description="Train FLUX.1 LoRAs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[..., Report], show: Callable[[Report], None], text: str, *, runs: bool = True
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function, show=show, watch_stdin=False)
        sub.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        if not runs:
            return sub
        sub.add_argument("--out", type=Path, default=Path("runs"), help="where run folders and the cache go (default: runs)")
        sub.add_argument("--cache", type=Path, help="where encoded pictures and captions go (default: OUT/cache)")
        return sub

    demo = command("demo", _demo, _show_trained, "train a style on the built-in base, in about a minute")
    demo.add_argument("--print-job", action="store_true", help="print the demo's job and stop: a file to start from")
    run = command("run", _run, _show_trained, "train a job; one that was interrupted goes on, a finished one returns")
    run.add_argument("job", type=Path, metavar="JOB.json", help="a job, or a workflow of ComfyUI's")
    resume = command("resume", _resume, _show_trained, "go on with an interrupted run")
    resume.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    resume.add_argument("--job", type=Path, metavar="JOB.json", help="go on with this job: more steps, another learning rate")
    command("runs", runs_command.runs, runs_command.show, runs_command.TEXT)
    ask = command("ask", _ask, _show_fields, "tell a running training what to do, within a step")
    ask.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    ask.add_argument("wish", choices=COMMANDS, help="stop saves first; sample makes pictures now")
    ask.add_argument("--prompt", default="", help="with sample: picture this instead of the job's own prompts")
    for sub in (run, resume):
        sub.add_argument("--watch-stdin", action="store_true", help="save and stop when standard input ends")
    check = command("check", _check, _show_checked, "check a job, its files, and whether the memory there is will do")
    check.add_argument("job", type=Path, metavar="JOB.json", help="a job, or a workflow of ComfyUI's")
    check.add_argument("--probe", action="store_true", help="train a step of a small part, to tell how long a step will take")
    check.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the plan")
    for sub in (run, check):
        job_commands.add_folders(sub)
        sub.add_argument("--allow-network", action="store_true", help="a workflow may download, publish, and call its webhook")
    importing = command(
        "import-simpletuner", job_commands.import_simpletuner, job_commands.show, job_commands.IMPORT_TEXT, runs=False
    )
    job_commands.add_import_arguments(importing)
    export = command("export-job", job_commands.export, job_commands.show, job_commands.EXPORT_TEXT, runs=False)
    job_commands.add_export_arguments(export)
    dataset = command("dataset", dataset_command.dataset, dataset_command.show, dataset_command.TEXT)
    dataset_command.add_arguments(dataset)
    compare = command("compare", _compare, _show_compared, "picture the prompts of a run by each of its checkpoints")
    compare.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    compare.add_argument("--checkpoints", default="", help="final, best, ema, or steps, with commas (default: all kept)")
    compare.add_argument("--strengths", default="1.0", help="strengths of the LoRA, with commas (default: 1.0)")
    compare.add_argument("--grid", type=Path, default=Path("compare.png"), help="where the pictures go (default: compare.png)")
    evaluate = command("evaluate", evaluate_command.evaluate, evaluate_command.show, evaluate_command.TEXT)
    evaluate_command.add_arguments(evaluate)
    inspect = command("inspect", _inspect, _show_fields, "show what a LoRA file holds")
    inspect.add_argument("lora", type=Path, metavar="LORA.safetensors")
    lora_commands.add_commands(command)
    csv = command("export-csv", csv_command.export, csv_command.show, csv_command.TEXT, runs=False)
    csv_command.add_arguments(csv)
    publishing = command("publish", publish.publish_command, publish.show, publish.TEXT, runs=False)
    publish.add_arguments(publishing)
    return parser
