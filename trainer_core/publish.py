"""`flux-lora publish`, and `push_to_hub` at the end of a run: the LoRA goes to the Hugging Face Hub, private by default.

The login is the machine's own, HF_TOKEN or `hf auth login`, read by huggingface_hub alone: no field, file, log or event of ours
holds it. A failure leaves the run as finished as it was; the message says what to do, and the same command does it later.
"""

import argparse
import logging
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .errors import JobError
from .job import TrainJob
from .run_dir import RunDir
from .saved import FINAL
from .specs.publishing import HUB_NAME
from .writing import write_json

TEXT = "upload a run's LoRA with its pictures and a model card to the Hugging Face Hub; private, unless --public"
HTTP_LIBRARIES = ("httpx", "httpx2")  # of huggingface_hub 1 and 2; what the one before raised is an OSError
NOTE = "published.json"  # in the run folder: where it went

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "--to", default="", metavar="NAME", help="NAME or OWNER/NAME (default: the job's hub_model_id, or its name)"
    )
    parser.add_argument("--public", action="store_true", help="a new repository is seen by everybody")
    parser.add_argument("--which", default=FINAL, help="final, best, ema, or a step (default: final)")
    parser.add_argument("--with-workflow", action="store_true", help="leave ComfyUI's graph in the LoRA's header")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER", help="write the files there to look at, and send nothing")


def publish_command(args: argparse.Namespace) -> dict[str, Any]:
    run_dir = RunDir(args.run_dir.absolute())
    if not run_dir.manifest_path.exists():
        raise JobError(f"{run_dir.root} is not a run folder: it has no manifest.json; give the folder that `run` printed")
    if args.to and not HUB_NAME.fullmatch(args.to):
        raise JobError(f"--to {args.to!r} is no repository; write NAME or OWNER/NAME")
    if args.prepare:
        from .model_card import prepare

        folder = prepare(run_dir, args.which, args.prepare.absolute(), with_graph=args.with_workflow)
        return {"folder": str(folder), "url": "", "private": True}
    job = run_dir.job()
    is_private = job.publishing.model_card_private and not args.public
    url = publish(run_dir, args.to or repository_of(job), is_private, which=args.which, with_graph=args.with_workflow)
    return {"folder": "", "url": url, "private": is_private}


def show(report: dict[str, Any]) -> None:
    if report["folder"]:
        print(f"prepared {report['folder']}; nothing was sent")
    else:
        print(f"{report['url']} ({'private, if it is new' if report['private'] else 'public, if it is new'})")


def push_finished(job: TrainJob, run_dir: RunDir) -> None:
    """At the end of a run that wishes it. What goes wrong is a warning: the run is finished all the same."""
    if not job.publishing.push_to_hub:
        return
    try:
        log.info("published: %s", publish(run_dir, repository_of(job), job.publishing.model_card_private))
    except JobError as error:
        log.warning("%s", error)


def repository_of(job: TrainJob) -> str:
    return job.publishing.hub_model_id or job.name


def publish(run_dir: RunDir, repository: str, private: bool, *, which: str = FINAL, with_graph: bool = False) -> str:
    """Create the repository if it is new, send the files as one commit; the repository's address. JobError says what failed."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    from .model_card import prepare

    api = HfApi()
    with tempfile.TemporaryDirectory() as folder:
        files = prepare(run_dir, which, Path(folder) / "files", with_graph=with_graph)
        try:
            url = api.create_repo(repository, private=private, exist_ok=True, repo_type="model")
            api.upload_folder(repo_id=url.repo_id, folder_path=files, commit_message=f"{run_dir.run_id}: {which}")
        except (*_failures(), LocalTokenNotFoundError, HFValidationError) as error:
            raise JobError(_explained(error, run_dir, repository)) from None
    write_json(run_dir.root / NOTE, {"repository": url.repo_id, "private": private, "which": which})
    return str(url)


def _failures() -> tuple[type[Exception], ...]:
    """All that asking the hub raises where it is not reached or says no: of its own, and of the library that it asks with."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    libraries = [import_module(name) for name in HTTP_LIBRARIES if find_spec(name)]
    return HfHubHTTPError, OfflineModeIsEnabled, OSError, *(library.HTTPError for library in libraries)


def _explained(error: Exception, run_dir: RunDir, repository: str) -> str:
    """What happened and what to do, in one sentence and a command."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    code = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
    said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if (token := get_token()) is not None:
        said = said.replace(token, "***")
    if isinstance(error, OfflineModeIsEnabled):
        mend = "HF_HUB_OFFLINE is set; unset it"
    elif code in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        mend = "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
    else:
        mend = "check the network"
    return (
        f"the LoRA was not published to {repository} ({said}); the run is finished and nothing of it is lost. {mend}, then: "
        f"flux-lora publish {run_dir.root} --to {repository}"
    )
