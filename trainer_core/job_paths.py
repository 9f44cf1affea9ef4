"""Which files and folders each part of a job names, and what of it would reach the network: the one list for whoever must know.

ComfyUI's side asks it before it touches any of them, since a workflow may come from a stranger. A test holds the table against
the specs, so that a new field that names a file is not forgotten. All that the disk is asked is whether what looks like a hub
id is a folder here.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .file_names import expanded
from .job import TrainJob
from .specs.adapter import LoraSpec
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec
from .specs.spec import Spec
from .specs.validation import ValidationSpec

PATH_FIELDS: dict[type[Spec], tuple[str, ...]] = {
    BaseModelSpec: (
        "transformer_path",
        "vae_path",
        "clip_l_path",
        "t5_path",
        "clip_tokenizer_path",
        "t5_tokenizer_path",
        "assistant_lora_path",
        "pretrained_model_name_or_path",
        "preview_decoder_path",
    ),
    DatasetSpec: ("instance_data_dir", "mask_data_dir", "reference_data_dir", "wildcards_dir", "caption_table"),
    LoraSpec: ("init_lora",),
    ValidationSpec: ("pretrained_evaluation_model_name_or_path", "validation_reference_path"),
}
HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")  # what may also stand in *_name_or_path


class NamedPath(NamedTuple):
    """A field that names a file or folder, and what it names."""

    field: str
    path: Path


def paths_of_job(job: TrainJob) -> Iterator[NamedPath]:
    """Every path in the job that is not empty."""
    for spec in (job.base, *job.datasets, job.lora, job.validation):
        yield from paths_of(spec)


def paths_of(spec: Spec) -> Iterator[NamedPath]:
    """Those of one part. A relative table lies below the pictures' folder; a hub id is no path, unless it is one here."""
    for field in PATH_FIELDS.get(type(spec), ()):
        given = getattr(spec, field).strip()
        if not given or (field.endswith("_name_or_path") and HUB_ID.fullmatch(given) and not Path(given).exists()):
            continue
        path = expanded(given)
        if field == "caption_table" and not path.is_absolute():
            path = expanded(spec.instance_data_dir) / path
        yield NamedPath(field, path)


def network_wishes(job: TrainJob) -> list[str]:
    """The fields of the job by which it would reach the network."""
    publishing = job.publishing
    wishes = {
        "allow_download": job.base.allow_download,
        "push_to_hub": publishing.push_to_hub,
        "webhook_url": bool(publishing.webhook_url),
    }
    return [field for field, is_on in wishes.items() if is_on]
