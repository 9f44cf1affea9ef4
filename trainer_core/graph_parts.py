"""What each node makes of its widgets: a spec of the job. ComfyUI's nodes call this, and so does the export of a workflow.

So a graph and its exported job cannot differ. What only ComfyUI knows, where its files and folders are, comes in as `Places`.
No torch: ComfyUI's nodes import this at their start.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, get_origin

from . import pico, presets
from .errors import JobError
from .file_names import expanded
from .job import TrainJob
from .job_file import parse_job, parse_part
from .job_paths import paths_of
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec
from .specs.spec import Spec
from .specs.training import TrainingSpec

NO_FILE = "none"
AS_CONFIGURED = "as configured"
DEMO_PICTURES = "pico demo pictures"
DEMO_FOLDERS = {  # choices of DatasetBucket -> folders that ship with the pack
    DEMO_PICTURES: pico.DEMO_PICTURES_DIR,
    "pico demo subject": pico.DEMO_SUBJECT_DIR,
    "pico plain pictures": pico.DEMO_PLAIN_DIR,
    "pico two-tone pictures": pico.DEMO_STYLED_DIR,  # with the plain ones as references
}
DEMO_CONFIG = "pico demo configuration"  # what ImportSimpleTunerConfig may be given in place of a path
FILES = {  # widget of LoadFluxForTraining -> ComfyUI's key of the folder
    "transformer": "diffusion_models",
    "vae": "vae",
    "clip_l": "text_encoders",
    "t5": "text_encoders",
    "assistant_lora": "loras",
}
PREVIEW_DECODER = "taef1_decoder.safetensors"  # in ComfyUI's folder vae_approx
TYPED = (*FILES, "clip_tokenizer", "t5_tokenizer", "preview_decoder")  # what other_files may name
SPECS: dict[str, str] = {  # nodes that are nothing but settings -> the job's part that they make
    "LoRAConfig": "lora",
    "OptimizerConfig": "optimizer",
    "FlowScheduleConfig": "flow",
    "ValidationConfig": "validation",
    "TrainingOptions": "training",
    "PublishingConfig": "publishing",
}
SOCKETS = ("lora", "routes", "optimizer", "flow", "validation", "publishing")  # of TrainLoRA, named as the job's parts


class Places(Protocol):
    """Where ComfyUI keeps things."""

    def model_file(self, folder: str, name: str) -> str:
        """The absolute path of a file of this folder's; JobError when there is none."""

    def tokenizers(self) -> dict[str, str]:
        """The fields of BaseModelSpec that name the tokenizers."""

    def preview_decoder(self) -> dict[str, str]:
        """The field of BaseModelSpec that names TAEF1's decoder, where ComfyUI has it."""

    def input_dir(self) -> Path:
        """The folder of the user's pictures."""


def base_of(values: Mapping[str, Any], places: Places) -> BaseModelSpec:
    """LoadFluxForTraining: names of files become paths, and what a card needs is filled in."""
    values = dict(values)
    card, typed = values.pop("card", presets.CUSTOM), typed_files(values.pop("other_files", ""))
    names = {name: values.pop(name, NO_FILE) for name in (*FILES, "checkpoint")}
    checkpoint = names.pop("checkpoint")
    if checkpoint != NO_FILE:
        if values.get("pretrained_model_name_or_path"):
            raise JobError(
                "LoadFluxForTraining: checkpoint and pretrained_model_name_or_path both name a whole FLUX; choose one"
            )
        values["pretrained_model_name_or_path"] = places.model_file("checkpoints", checkpoint)
    for name, chosen in names.items():
        values[f"{name}_path"] = "" if chosen == NO_FILE else places.model_file(FILES[name], chosen)
    twice = [field for field in typed if values.get(field)]
    if twice:
        raise JobError(f"LoadFluxForTraining: {', '.join(twice)} is chosen and also in other_files; take one out")
    if values.get("model_flavour", "pico") != "pico":
        values |= places.tokenizers() | places.preview_decoder()
    return parse_part("base", presets.fill(card, values | typed, "LoadFluxForTraining"), "LoadFluxForTraining")


def typed_files(lines: str) -> dict[str, str]:
    """Fields of the base from lines such as `vae = /models/ae.safetensors`; JobError for a line that is none."""
    found = {}
    for line in filter(None, map(str.strip, lines.splitlines())):
        name, is_given, path = (part.strip() for part in line.partition("="))
        if name not in TYPED or not (is_given and path):
            raise JobError(
                f"LoadFluxForTraining: other_files has {line!r}; write NAME = PATH, where NAME is one of {', '.join(TYPED)}"
            )
        found[f"{name}_path"] = str(expanded(path).absolute())
    return found


def spec_of(node: str, values: Mapping[str, Any]) -> Any:
    """One of the nodes that are nothing but settings."""
    part = SPECS[node]
    model = TrainJob.model_fields[part].annotation
    values = with_lines(model, values)
    if part == "training" and values.get("num_train_epochs"):
        values |= {"max_train_steps": 0}  # which the node does not ask for
    return parse_part(part, values, node)


def options_of(node: str, values: Mapping[str, Any], previous: Mapping[str, Any] | None) -> dict[str, Any]:
    """DatasetCrop, DatasetCaptions, DatasetSampling: fields of a dataset, with those that came along the chain."""
    return joined(previous, with_lines(DatasetSpec, values, leave=("resolution",)), node)


def joined(previous: Mapping[str, Any] | None, values: Mapping[str, Any], node: str) -> dict[str, Any]:
    """Both; JobError where a setting is in both, for one would be lost."""
    twice = [name for name in values if name in (previous or {})]
    if twice:
        raise JobError(f"{node}: {', '.join(twice)} came along the chain already; take one of the two nodes out")
    return dict(previous or {}) | dict(values)


def dataset_of(
    values: Mapping[str, Any],
    options: Mapping[str, Any] | None,
    previous: tuple[DatasetSpec, ...],
    folders: Mapping[str, str],
) -> DatasetSpec:
    """DatasetBucket, whose pictures lie in these `folders`: fields of DatasetSpec. References may be a folder of the pack."""
    fields = joined(options, values, "DatasetBucket") | dict(folders)
    if (shipped := DEMO_FOLDERS.get(fields.get("reference_data_dir", "").strip())) is not None:
        fields["reference_data_dir"] = str(shipped)
    name = str(fields.pop("id", "")).strip() or Path(fields["instance_data_dir"]).name
    fields["id"] = distinct(name, {spec.id for spec in previous})
    return parse_part("datasets", [fields], "DatasetBucket")[0]


def chosen_folder(folder: str, path: str, places: Places) -> Path:
    """The folder that DatasetBucket's two widgets mean; JobError where the chosen one is not here."""
    if path.strip():
        return expanded(path).absolute()
    if folder in DEMO_FOLDERS:
        return DEMO_FOLDERS[folder]
    chosen = places.input_dir() / folder
    if not os.path.isdir(chosen):  # False, too, where a name is longer than any
        raise JobError(
            f"DatasetBucket: there is no folder {folder!r} in {chosen.parent}; put the pictures there and press R, choose "
            "another, or write where they lie into path"
        )
    return chosen


def distinct(name: str, taken: set[str]) -> str:
    """The name, with a number behind it where it is taken."""
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(candidate for candidate in (name, *numbered) if candidate not in taken)


def job_of(
    values: Mapping[str, Any],
    options: TrainingSpec | None,
    device: str,
    parts: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> TrainJob:
    """TrainLoRA: the job. `parts` are those that came along wires, by their names in the job, but for `options`."""
    training = (options or TrainingSpec()).model_dump() | {"device": device}
    renamed = {"max_train_steps": "max_train_steps", "training_seed": "seed"}
    training |= {field: values[name] for name, field in renamed.items() if name in values}
    given = {name: part for name, part in parts.items() if part is not None}
    rest = {name: value for name, value in values.items() if name not in renamed}
    return parse_job({**rest, **given, "training": training, "metadata": dict(metadata)}, "TrainLoRA")


def imported(values: Mapping[str, Any], may_read: Callable[[Path], bool] = lambda path: True) -> tuple[Any, ...]:
    """ImportSimpleTunerConfig: the job's parts in the order of TrainLoRA's sockets, steps, seed, the report, the name, and
    what is published."""
    job, report = _import(values, may_read)
    if job is None:
        raise JobError(f"ImportSimpleTunerConfig:\n{report}\n\ncorrect what is refused, or switch on skip_refused")
    parts = (job.base, job.datasets, job.lora, job.routes, job.optimizer, job.flow, job.validation, job.training)
    return (*parts, job.training.max_train_steps, job.training.seed, report, job.name, job.publishing)


def read_by_import(values: Mapping[str, Any], may_read: Callable[[Path], bool]) -> list[Path]:
    """The files that such an import may read, those beside the configuration and the datasets' own, and the folders of the
    pictures."""
    path = configuration(str(values["config"])).absolute()
    folder = path if os.path.isdir(path) else path.parent
    files = [file for suffix in ("json", "toml", "env") for file in sorted(folder.glob(f"*.{suffix}"))]
    if datasets := str(values["datasets"]).strip():
        files.append(expanded(datasets))
    try:
        job, _ = _import(values, may_read)
    except JobError:  # which the import itself will say
        return files
    return [*files, *(named.path for spec in (job.datasets if job else ()) for named in paths_of(spec))]


def _import(values: Mapping[str, Any], may_read: Callable[[Path], bool]) -> tuple[TrainJob | None, str]:
    """The job, None where something is refused, and the report."""
    from .importers.simpletuner import import_config  # imports torch when it is called
    from .importers.simpletuner_draft import describe
    from .importers.simpletuner_model import Swaps

    config, datasets = (str(values.get(name) or "").strip() for name in ("config", "datasets"))
    if not config:
        raise JobError("ImportSimpleTunerConfig: config is empty; give the path of SimpleTuner's config.json")
    base = values.get("base", AS_CONFIGURED)
    swaps = Swaps("" if base == AS_CONFIGURED else base, allow_download=bool(values.get("allow_download")))
    is_partly = bool(values.get("skip_refused"))
    paths = configuration(config), Path(datasets) if datasets else None
    found = import_config(*paths, swaps, partly=is_partly, may_read=may_read)
    return found.job, describe(found.notes)


def configuration(text: str) -> Path:
    """The path that ImportSimpleTunerConfig's `config` means, or that of the configuration which ships with the pack."""
    return pico.DEMO_CONFIG_DIR if text.strip() == DEMO_CONFIG else expanded(text)


def with_lines(spec: type[Spec], values: Mapping[str, Any], leave: tuple[str, ...] = ()) -> dict[str, Any]:
    """The widgets' values, with the text of each field that is a list taken apart into its lines."""
    lists = [name for name, info in spec.model_fields.items() if get_origin(info.annotation) is tuple and name not in leave]
    return dict(values) | {name: lines_of(values[name]) for name in lists if name in values}


def lines_of(text: str) -> tuple[str, ...]:
    """The lines of a text widget that hold something."""
    return tuple(line.strip() for line in text.splitlines() if line.strip())
