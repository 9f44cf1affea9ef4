"""The routes that the monitor and the run history ask, all under /flux_lora/; docs/http.md is their contract.

A handler takes what it needs from the request and gives a plain value back; the disk is touched in threads, so that ComfyUI
goes on answering. What can be asked for is a run right below the runs folder, by a name that is one, and files inside it.
"""

import asyncio
import json
import os
import shutil
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from ..trainer_core.commands import read_command
from ..trainer_core.errors import JobError
from ..trainer_core.event_file import read_page, within
from ..trainer_core.file_names import problem_of
from ..trainer_core.run_dir import LOCK, RunDir
from ..trainer_core.runs import find_run, is_held, list_runs, summarise
from ..trainer_core.saved import FINAL
from ..trainer_core.writing import read_json
from .attached import ATTACHED
from .folders import home_dir, loras_dir
from .http_requests import FORM, JSON, Refusal, check_content_type, check_origin, json_body
from .offers import copy_lora
from .permissions import permissions
from .standby import NONE, STANDBY
from .uploads import new_dataset

LONGEST_CHECKPOINT, LONGEST_PATH = 40, 500  # characters
MEDIA_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".safetensors": "application/octet-stream"}
SIGNATURES = {".png": b"\x89PNG\r\n\x1a\n", ".jpg": b"\xff\xd8\xff", ".safetensors": b""}

Answer = dict[str, Any] | web.FileResponse
Work = Callable[[web.Request], Awaitable[Answer]]


async def runs(request: web.Request) -> Answer:
    summaries = await asyncio.to_thread(list_runs, runs_dir(), ATTACHED)
    return {"runs": [summary._asdict() for summary in summaries]}


async def one_run(request: web.Request) -> Answer:
    run = await run_of(request)
    summary = await asyncio.to_thread(summarise, run, is_busy=run.run_id in ATTACHED)
    return summary._asdict()


async def events(request: web.Request) -> Answer:
    after = request.query.get("after", "0")
    if not (after.isascii() and after.isdigit() and len(after) <= 15):
        raise Refusal(400, "after must be a number of bytes")
    run = await run_of(request)
    return await asyncio.to_thread(_events, run, int(after))


async def file(request: web.Request) -> Answer:
    run, path = await run_of(request), request.match_info["path"]
    found = await asyncio.to_thread(_file, run, path)
    headers = {
        "Content-Type": MEDIA_TYPES[found.suffix],
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",  # kept, but asked for again: a run that goes on may write its pictures anew
    }
    return web.FileResponse(found, headers=headers)


async def workflow(request: web.Request) -> Answer:
    return await asyncio.to_thread(_workflow, await run_of(request))


async def ask(request: web.Request) -> Answer:
    run, command = await run_of(request), read_command(await json_body(request, {"command", "prompt"}))
    if run.run_id not in ATTACHED and not await asyncio.to_thread(is_held, run):
        raise Refusal(409, "no process trains this run now; queue its graph again to go on")
    await asyncio.to_thread(run.ask, *command)
    return {"asked": command.name}


async def offer(request: web.Request) -> Answer:
    run, body = await run_of(request), await json_body(request, {"name", "checkpoint"})
    name, which = body.get("name"), body.get("checkpoint", FINAL)
    if not isinstance(name, str) or not isinstance(which, str | int) or len(str(which)) > LONGEST_CHECKPOINT:
        raise Refusal(400, "name must be a text, and checkpoint final, best, ema, latest or a step")
    copied = await asyncio.to_thread(copy_lora, run, str(which), name)
    return {"lora": str(copied.relative_to(loras_dir()))}


async def delete(request: web.Request) -> Answer:
    run = await run_of(request)
    await asyncio.to_thread(_delete, run)
    return {"deleted": run.run_id}


async def standby(request: web.Request) -> Answer:
    await json_body(request, set())
    return {"standby": await asyncio.to_thread(_standby)}


ROUTES: tuple[tuple[str, str, Work, str], ...] = (  # method, path, work, and the content type of what changes something
    ("GET", "/flux_lora/runs", runs, ""),
    ("GET", "/flux_lora/runs/{id}", one_run, ""),
    ("GET", "/flux_lora/runs/{id}/events", events, ""),
    ("GET", "/flux_lora/runs/{id}/files/{path:.+}", file, ""),
    ("GET", "/flux_lora/runs/{id}/workflow", workflow, ""),
    ("POST", "/flux_lora/runs/{id}/ask", ask, JSON),
    ("POST", "/flux_lora/runs/{id}/offer", offer, JSON),
    ("DELETE", "/flux_lora/runs/{id}", delete, JSON),
    ("POST", "/flux_lora/datasets", new_dataset, FORM),
    ("POST", "/flux_lora/standby", standby, JSON),
)


def add_routes() -> None:
    """Hand the routes to ComfyUI's server, which takes them up once all packs are imported; nothing without a server."""
    if "server" not in sys.modules:
        return
    from server import PromptServer

    if "instance" in vars(PromptServer):
        for method, path, work, content_type in ROUTES:
            PromptServer.instance.routes.route(method, path)(answering(work, content_type))


def answering(work: Work, content_type: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """The work as a handler: strangers are refused, values become JSON, and what cannot be done a sentence."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            if content_type:
                check_origin(request)
                check_content_type(request, content_type)
            answer = await work(request)
        except Refusal as refusal:
            return _json({"error": str(refusal)}, refusal.status)
        except JobError as error:
            return _json({"error": str(error).replace(f"{runs_dir()}{os.sep}", "")}, 400)
        except OSError as error:
            return _json({"error": f"the disk refuses: {error.strerror}"}, 500)
        return answer if isinstance(answer, web.StreamResponse) else _json(answer)

    return handle


def _json(value: dict[str, Any], status: int = 200) -> web.Response:
    """Never kept: ComfyUI would let the browser remember for an hour that a picture is not there."""
    return web.json_response(value, status=status, headers={"Cache-Control": "no-store"})


def runs_dir() -> Path:
    return home_dir() / "runs"


async def run_of(request: web.Request) -> RunDir:
    """The run that the address names; Refusal where there is none."""
    run = await asyncio.to_thread(find_run, runs_dir(), request.match_info["id"])
    if run is None:
        raise Refusal(404, "there is no such run")
    return run


def _events(run: RunDir, after: int) -> dict[str, Any]:
    page = read_page(run.events_path, after)
    state = summarise(run, is_busy=run.run_id in ATTACHED).state
    told = {"events": [within(event, run.run_id) for event in page.events], "next": page.next, "state": state}
    return told | {"restarted": True} if page.restarted else told


def _file(run: RunDir, name: str) -> Path:
    """A picture or a LoRA inside the run folder; Refusal for all else, links included."""
    refusal = Refusal(404, "there is no such picture or LoRA in this run")
    path, parts = run.root, name.split("/")
    if len(name) > LONGEST_PATH or any(map(problem_of, parts)):
        raise refusal
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise refusal
    if path.suffix not in SIGNATURES or (path.suffix == ".safetensors" and len(parts) > 1 and parts[-2] != "lora"):
        raise refusal
    if not path.is_file() or run.root.resolve() not in path.resolve().parents:
        raise refusal
    with path.open("rb") as opened:
        if not opened.read(len(SIGNATURES[path.suffix])) == SIGNATURES[path.suffix]:
            raise refusal
    return path


def _delete(run: RunDir) -> None:
    """The folder with all that is in it, the job last, so that what is left of a deletion that was broken off is a run still.

    Its lock is held meanwhile. Links are taken away, not what they lead to.
    """
    if run.run_id in ATTACHED or is_held(run):
        raise Refusal(409, "this run is being trained; stop it first")
    with run.owned():
        for path in sorted(run.root.iterdir(), key=lambda path: path == run.job_path):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    (run.root / LOCK).unlink(missing_ok=True)
    run.root.rmdir()


def _standby() -> str:
    """How the trainer stands that waits, from now on where there was none; none while one trains."""
    try:
        is_allowed = permissions().standby
    except JobError:  # the settings are damaged, which the next workflow is told
        is_allowed = False
    return STANDBY.prepare() if is_allowed and not ATTACHED else NONE


def _workflow(run: RunDir) -> dict[str, Any]:
    """The graph in the job's metadata, which holds it as texts; null where there is none that can be read."""
    graph: dict[str, Any] = {}
    for name in ("workflow", "prompt"):
        try:
            graph[name] = json.loads(read_json(run.job_path)["metadata"][name])
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            graph[name] = None
    return graph
