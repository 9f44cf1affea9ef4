"""A picture of a prompt that somebody types in while the run trains: encoded there and then, and made like the run's own.

The text encoders are loaded for it and given back at once. They go to the card only where they fit beside the training, else to
host memory, and where that has no room either the wish is declined with a warning: a picture must never cost the run. What is
encoded elsewhere than the run's captions differs from them in the last bits, so the cache keeps it under another name.
"""

import gc
import hashlib
import logging
from dataclasses import replace
from math import prod

import psutil
import torch

from .context import RunContext
from .data.encode import Caches, encode_captions, encode_pictures
from .errors import JobError
from .flux.dialects import open_clip, open_t5
from .setup import Setup, trigger_word_of
from .validation.shots import ASKED, Shot, make_shots, references_of

SPARE = 1.15  # of what the encoders weigh, for the work on one prompt
FLOOR = 1 << 29  # bytes
HOST = torch.device("cpu")

log = logging.getLogger(__name__)


class _Left(Exception):
    """A stop was wished for while the prompt was being encoded."""


def ready_asked(setup: Setup, caches: Caches, context: RunContext, prompt: str) -> tuple[Setup, Caches] | None:
    """What `make_pictures` needs to picture this prompt alone: a setup of it, and where its text is. None, with a warning,
    where it cannot be; None as well after a wish to stop."""
    job, wishes = setup.job, {"validation_prompts": (prompt,), "user_prompt_library": "", "evaluation_type": "none"}
    validation = job.validation.model_copy(update=wishes)
    try:
        shots = make_shots(validation, setup.flavour, (), trigger_word_of(job), setup.starts)[:1]
    except JobError as error:
        log.warning("no picture is made: %s", error)
        return None
    [shot] = (shot._replace(name=ASKED + hashlib.sha256(shot.prompt.encode()).hexdigest()[:10]) for shot in shots)
    encoders = _ready(setup, caches, context, shot) if context.group.is_first else ()
    encoders = context.group.tell(encoders)
    if encoders is None:
        return None
    if not context.group.is_first:
        caches = replace(caches, captions=caches.captions.again(), latents=caches.latents.again())
    caches = replace(caches, text_encoders=tuple(encoders))
    asked = replace(setup, job=job.model_copy(update={"validation": validation}), shots=(shot,))
    return asked, caches


def _ready(setup: Setup, caches: Caches, context: RunContext, shot: Shot) -> tuple[str, ...] | None:
    """See to it that the shot's texts, and what it starts from, are in the cache; by which encoders the texts are. None where
    they cannot be, or after a wish to stop."""
    tiled, silent = setup.job.base.vae_enable_tiling, lambda done, total: None
    try:
        encode_pictures(caches, references_of([shot]), setup.files.vae, setup.device, silent, tiled=tiled)
    except JobError as error:
        log.warning("no picture of %r is made: %s", shot.prompt, error)
        return None
    texts = list(dict.fromkeys((shot.prompt, shot.negative_prompt)))
    if all(caches.caption_name(text) in caches.captions for text in texts):
        return caches.text_encoders
    place = _room_for_encoders(setup)
    if place is None:
        log.warning("no picture of %r is made: there is no memory for the text encoders beside the training", shot.prompt)
        return None
    if place != setup.device:
        caches = replace(caches, text_encoders=(*caches.text_encoders, f"on {place}"))
    try:
        _encode(setup, caches, context, texts, place)
    except _Left:
        return None
    return caches.text_encoders


def _room_for_encoders(setup: Setup) -> torch.device | None:
    """Where both fit now beside what is there."""
    files = (open_clip(setup.files.clip_l), open_t5(setup.files.t5))
    values = sum(prod(entry.shape) for file in files for entry in file.entries.values())
    needed = FLOOR + SPARE * values * setup.encoding.dtype.itemsize
    if setup.device.type == "cuda":
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info(setup.device)[0] > needed:
            return setup.device
    return HOST if psutil.virtual_memory().available > needed else None


def _encode(setup: Setup, caches: Caches, context: RunContext, texts: list[str], place: torch.device) -> None:
    """The texts into the cache, the encoders gone again."""
    report = context.progress("encode captions")

    def report_or_leave(done: int, total: int) -> None:
        if context.should_stop():
            raise _Left
        report(done, total)

    try:
        encode_captions(caches, texts, setup.files, setup.flavour, setup.encoding, place, report_or_leave, one_at_a_time=True)
    finally:
        gc.collect()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
