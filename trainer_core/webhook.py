"""Telling an address that a run has ended: one more listener of the events, which sends one JSON object.

    {"event": "done", "run_id", "name", "step", "steps", "loss", "seconds", "lora", "message"}

`event` is done, stopped or failed; the message of a failure is the one in the run's events. It is sent once a process, whatever
becomes of the answer: a hook that cannot be reached is a warning, never the end of a run. Chat programs show a text alone, so
`text` and `content` (Slack's and Discord's word) hold one. The address, a secret often, is in no message of ours.
"""

import json
import logging
import os
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from .errors import JobError
from .events import Event
from .job import TrainJob
from .run_dir import RunDir

SECONDS = 10.0  # for the whole answer
LAST_WORDS = {"done": "done", "stopped": "stopped", "error": "failed"}

log = logging.getLogger(__name__)


class Webhook:
    """A listener for EventLog. `close` tells of a run that ended without a word of its own."""

    def __init__(self, job: TrainJob, run_dir: RunDir):
        self._name, self._run_id, self._address = job.name, run_dir.run_id, address_of(job)
        self._facts: dict[str, Any] = {"step": 0, "steps": 0, "loss": None, "seconds": None, "lora": None, "message": ""}
        self._has_begun, self._has_told = False, False

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        self._has_begun |= kind == "started"
        self._facts |= {
            name: event[name] for name in ("step", "steps", "loss", "seconds") if kind != "warning" and name in event
        }
        if kind == "done":
            self._facts["lora"] = event["lora"].replace("\\", "/").rpartition("/")[2]
        if kind in LAST_WORDS:
            self._facts["message"] = event.get("message", "")
            self._tell(LAST_WORDS[kind])

    def close(self) -> None:
        if self._has_begun and not self._has_told:
            self._facts["message"] = "it ended without a word; its log says why"
            self._tell("failed")

    def _tell(self, event: str) -> None:
        if not self._address or self._has_told:
            return
        self._has_told = True
        text = f"{self._name}: {event} at step {self._facts['step']}"
        told = {"event": event, "run_id": self._run_id, "name": self._name, **self._facts, "text": text, "content": text}
        send(self._address, told)


def address_of(job: TrainJob) -> str:
    """Where the job's hook is; JobError where it is to be in the environment and is not."""
    address = job.publishing.webhook_url
    if not address.startswith("$"):
        return address
    found = os.environ.get(address[1:], "")
    if not found.startswith(("https://", "http://")):
        raise JobError(
            f"publishing.webhook_url is {address}, but the environment variable {address[1:]} holds no address; set it, or "
            "leave webhook_url empty"
        )
    return found


def send(address: str, told: dict[str, Any]) -> None:
    """POST it as JSON; what goes wrong is a warning."""
    body = json.dumps(told, ensure_ascii=False).encode("utf-8", "backslashreplace")
    headers = {"Content-Type": "application/json", "User-Agent": "flux-lora-studio"}
    try:
        request = urllib.request.Request(address, body, headers, method="POST")
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
    except (OSError, ValueError) as error:
        why = f"it answered {error.code}" if isinstance(error, urllib.error.HTTPError) else type(error).__name__
        log.warning("the webhook at %s was not told: %s; check webhook_url", urlsplit(address).hostname, why)
