"""What model libraries show of a LoRA: the entries of ModelSpec in its header.

ModelSpec is Stability AI's (https://github.com/Stability-AI/ModelSpec, 1.0). ComfyUI's model library reads title, author,
description, resolution, usage hint, trigger phrase, thumbnail, tags and architecture (frontend 1.27.10), from headers of up to
1 MiB. What the job does not say is taken from what is known: the base's licence, the datasets' trigger words, the first of the
last pictures. The date is that of the run's beginning, so that one that was interrupted ends with the same bytes.
"""

import base64
import io
import time
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from .event_file import first_event
from .file_names import expanded
from .flux.flavours import Flavour
from .flux.licences import LICENCES, strictest
from .job import TrainJob
from .run_dir import RunDir

THUMBNAIL_EDGE, THUMBNAIL_QUALITY = 256, 85  # the edge that ModelSpec recommends
ARCHITECTURE = "modelspec.architecture"


def modelspec_of(job: TrainJob, flavour: Flavour, summary: str, started: str = "", thumbnail: str = "") -> dict[str, str]:
    """The entries that have something in them. `summary` says what kind of adapter it is; `started` is an ISO date."""
    said, trigger = job.publishing, trigger_phrase_of(job)
    entries = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{flavour.architecture}/lora",
        "implementation": "diffusers",
        "title": said.title.strip() or job.name,
        "description": said.description.strip() or summary,
        "author": said.author.strip(),
        "date": started,
        "resolution": f"{flavour.home_resolution}x{flavour.home_resolution}",
        "trigger_phrase": trigger,
        "usage_hint": said.usage_hint.strip() or usage_hint(flavour, trigger),
        "tags": said.tags.strip(),
        "license": LICENCES[strictest(architectures_of(job, flavour))].shown,
        "thumbnail": thumbnail,
    }
    return {f"modelspec.{name}": value for name, value in entries.items() if value}


def trigger_phrase_of(job: TrainJob) -> str:
    """As the job says it, else the datasets' trigger words, else the captions that all of their pictures have."""
    if said := job.publishing.trigger_phrase.strip():
        return said
    trained = [spec for spec in job.datasets if spec.dataset_type == "image" and not spec.disabled]
    words = [spec.trigger_word.strip() for spec in trained] or []
    captions = [spec.instance_prompt.strip() for spec in trained]
    return ", ".join(dict.fromkeys(filter(None, words if any(words) else captions)))


def usage_hint(flavour: Flavour, trigger: str) -> str:
    """With the resolution: ComfyUI's model library reads that entry of its own and shows it nowhere (frontend 1.27.10)."""
    sampler, size = flavour.sampler, flavour.home_resolution
    settings = [f"guidance {sampler.guidance:g}"] if sampler.guidance else []
    return ", ".join([*([f"say {trigger}"] if trigger else []), f"{size}x{size}", *settings, f"{sampler.num_steps} steps"])


def architectures_of(job: TrainJob, flavour: Flavour) -> list[str]:
    """Of the base, and of the LoRA that training began with, as far as that says."""
    path = expanded(job.lora.init_lora)
    if not job.lora.init_lora.strip() or not path.is_file():
        return [flavour.architecture]
    from .flux.files import read_header  # imports torch

    said = read_header(path).get("__metadata__", {}).get(ARCHITECTURE)
    return [flavour.architecture, *([said] if said else [])]


def started_on(run_dir: RunDir) -> str:
    """The day of the run's first event, in UTC; nothing before there is one."""
    event: dict[str, Any] | None = first_event(run_dir.events_path) if run_dir.events_path.exists() else None
    return time.strftime("%Y-%m-%d", time.gmtime(event["time"])) if event else ""


def thumbnail_of(picture: Path) -> str:
    """The middle of a picture as a small JPEG, written as a data address."""
    with Image.open(picture) as file:
        small = ImageOps.fit(file.convert("RGB"), (THUMBNAIL_EDGE, THUMBNAIL_EDGE), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
