"""SimpleTuner configurations as jobs: `import_config` reads what its users have and says what became of every option.

A report has four parts, and a fifth for what nobody knows: taken; taken with another meaning, because the original has a
defect or a default that harms (which, and what is done here); no effect here; refused, with the mend. Nothing is refused that
could be done in another way.

    simpletuner_files      config.json, .toml, .env, and the paths inside
    simpletuner_draft      the job as it grows, the notes, what a row of a table can say
    simpletuner_model, _adapter, _course, _flow, _pictures, _publishing, _rest    option -> what becomes of it, by concern
    simpletuner_datasets, _dataset_options    multidatabackend.json

A table decides alone where an option can be judged alone; a `settle_` function where it takes several.
"""

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JobError
from ..file_names import expanded
from ..job import TrainJob
from ..job_file import parse_job
from ..specs.no_effect import FLOW as FLOW_ROWS
from ..specs.no_effect import LORA as LORA_ROWS
from ..specs.no_effect import OPTIMIZER as OPTIMIZER_ROWS
from ..specs.no_effect import TRAINING as TRAINING_ROWS
from ..specs.no_effect import VALIDATION as VALIDATION_ROWS
from .simpletuner_adapter import ADAPTER, settle_adapter
from .simpletuner_course import COURSE, settle_course
from .simpletuner_datasets import read_datasets
from .simpletuner_draft import IDLE, MISFITS, OTHERWISE, REFUSED, TAKEN, UNKNOWN, Draft, Note, Row, apply, drop_empty
from .simpletuner_files import Place, find_config, read_json, read_options
from .simpletuner_flow import FLOW, settle_flow
from .simpletuner_model import MODEL, Swaps, settle_base
from .simpletuner_pictures import PICTURES, settle_pictures
from .simpletuner_publishing import PUBLISHING
from .simpletuner_rest import FAMILIES, REST

OPTIONS: dict[str, Row] = MODEL | ADAPTER | COURSE | FLOW | PICTURES | PUBLISHING | REST
ALIASES = {  # names of other versions
    "model_flavor": "model_flavour",
    "rank": "lora_rank",
    "flux_guidance_scale": "flux_guidance_value",
    "flux_schedule_shift": "flow_schedule_shift",
    "flux_schedule_auto_shift": "flow_schedule_auto_shift",
    "flux_use_uniform_schedule": "flow_use_uniform_schedule",
    "flux_use_beta_schedule": "flow_use_beta_schedule",
    "flux_beta_schedule_alpha": "flow_beta_schedule_alpha",
    "flux_beta_schedule_beta": "flow_beta_schedule_beta",
    "flow_matching_sigmoid_scale": "flow_sigmoid_scale",
    "checkpointing_steps": "checkpoint_step_interval",
    "checkpointing_epochs": "checkpoint_epoch_interval",
    "validation_steps": "validation_step_interval",
    "validation_epochs": "validation_epoch_interval",
    "eval_steps": "eval_steps_interval",
    "disable_validation": "validation_disable",
    "data_backend": "data_backend_config",
    "attention_implementation": "attention_mechanism",
}
UNSAID = {  # option that is not given -> what the original would do by itself, and what is done here
    "model_type": "not given: there, the whole model would be trained; here, an adapter",
    "learning_rate": "not given: there 4e-7, which teaches a LoRA nothing; here 1e-4",
    "train_batch_size": "not given: there 4; here 1, as the guide advises",
    "max_grad_norm": "not given: there each number of the gradient is cut at 2, which is no limit; here its length is held",
    "caption_dropout_probability": "not given: there every tenth caption is left out; here none",
    "lora_dropout": "not given: there a tenth of the adapter's inputs is zeroed; here none",
    "validation_guidance": "not given: there 7.5, which burns; here what suits the base",
    "validation_resolution": "not given: there 256; here the base's home size",
    "validation_step_interval": "not given: there every 100 steps; here before and after",
    "checkpoint_step_interval": "not given: there every 500 steps; here every 250",
}
IDLE_ROWS = {
    "lora": LORA_ROWS,
    "optimizer": OPTIMIZER_ROWS,
    "flow": FLOW_ROWS,
    "training": TRAINING_ROWS,
    "validation": VALIDATION_ROWS,
}
NAME_SOURCES = ("tracker_run_name", "hub_model_id", "output_dir")


class Imported(NamedTuple):
    """What came of it. `job` is None where something was refused; `output_dir` is where the configuration puts its results."""

    job: TrainJob | None
    notes: tuple[Note, ...]
    output_dir: str


def import_config(
    config: Path,
    datasets: Path | None = None,
    swaps: Swaps | None = None,
    *,
    partly: bool = False,
    may_read: Callable[[Path], bool] = lambda path: True,
) -> Imported:
    """The job of a configuration and a note for every option. JobError where a file cannot be read.

    `datasets` is multidatabackend.json where the configuration does not name it; `partly` makes the job without what is
    refused; `may_read` says which files and folders that the configuration names may be looked at.
    """
    swaps = swaps or Swaps()
    config = find_config(config)
    draft = Draft(_canonical(read_options(config)), Place(config, may_read))
    drop_empty(draft)
    backends = expanded(str(datasets)).absolute() if datasets else _named_datasets(draft)
    for option, value in draft.options.items():
        row = OPTIONS.get(option)
        if row is not None:
            apply(draft, option, value, row)
        else:
            _note_unknown(draft, option)
    read_datasets(draft, read_json(backends))
    if "data_backend_config" in draft.options:
        draft.note(TAKEN, "data_backend_config", "datasets")
    settles: tuple[Callable[[Draft], None], ...] = (settle_adapter, settle_course, settle_flow, settle_pictures, _drop_idle)
    for settle in (lambda draft: settle_base(draft, swaps), *settles):
        try:
            settle(draft)
        except MISFITS as error:
            draft.note(REFUSED, "configuration", str(error))
    _note_unsaid(draft)
    job = None if _is_refused(draft) and not partly else _make_job(draft)
    output_dir = str(draft.options.get("output_dir") or "")
    return Imported(job, tuple(draft.notes), str((draft.place.root / output_dir).absolute()) if output_dir else "")


def _canonical(options: dict[str, Any]) -> dict[str, Any]:
    return {ALIASES.get(name, name): value for name, value in options.items()}


def _named_datasets(draft: Draft) -> Path:
    if not draft.given("data_backend_config"):
        raise JobError("the configuration has no data_backend_config; give multidatabackend.json behind it")
    return draft.place.find(str(draft.options["data_backend_config"]))


def _note_unknown(draft: Draft, option: str) -> None:
    family = next((text for start, text in FAMILIES.items() if option.startswith(start)), "")
    if family:
        return draft.note(IDLE, option, f"{family}, which is not here")
    close = difflib.get_close_matches(option, [*OPTIONS, *ALIASES], n=1, cutoff=0.7)
    draft.note(UNKNOWN, option, f"did you mean {close[0]}?" if close else "is not known here, and has no effect")


def _drop_idle(draft: Draft) -> None:
    """What our specs would refuse as idle beside the other settings."""
    for part, rows in IDLE_ROWS.items():
        for name, why in draft.parts[part].drop_idle(rows):
            draft.note(IDLE, name, why)


def _note_unsaid(draft: Draft) -> None:
    noted = {note.option for note in draft.notes}
    is_lora = draft.get("lora.lora_type") == "lora"
    for option, text in UNSAID.items():
        if option not in draft.options and option not in noted and (is_lora or option != "lora_dropout"):
            draft.note(OTHERWISE, option, text)


def _is_refused(draft: Draft) -> bool:
    return any(note.kind == REFUSED for note in draft.notes)


def _make_job(draft: Draft) -> TrainJob | None:
    """The job; None, with a note, where its parts do not go together in a way that no table foresaw."""
    parts = {name: fields.values for name, fields in draft.parts.items()}
    datasets = [fields.values for fields in draft.datasets if fields.values.get("instance_data_dir")]
    try:
        return parse_job({"name": _name(draft), **parts, "datasets": datasets, "routes": draft.routes}, "the imported job")
    except JobError as error:
        draft.note(REFUSED, "configuration", str(error))
        return None


def _name(draft: Draft) -> str:
    """A name for the LoRA from what the configuration calls itself."""
    for option in NAME_SOURCES:
        last = str(draft.options.get(option) or "").rstrip("/").rpartition("/")[2]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:80]
        if name:
            return name
    return "my-lora"
