"""SimpleTuner's options that go out or come under other names: the hub, webhooks, the names of older and newer versions."""

import json
from pathlib import Path
from typing import Any

import pytest
from simpletuner_examples import EXAMPLES, simpletuner_dir

from support import Command
from trainer_core.errors import JobError
from trainer_core.graph_parts import imported as handed_on
from trainer_core.importers.simpletuner import ALIASES, OPTIONS, Imported, import_config
from trainer_core.importers.simpletuner_draft import IDLE, OTHERWISE, REFUSED, TAKEN, UNKNOWN, describe
from trainer_core.importers.simpletuner_files import ENV_NAMES, Place
from trainer_core.importers.simpletuner_model import Swaps

HOOK = {"webhook_type": "discord", "webhook_url": "https://example.org/secret", "message_prefix": "me"}
RENAMED = {  # an option by a name of another version, and where its value is in the job
    "rank": (8, "lora.lora_rank"),
    "checkpointing_steps": (70, "training.checkpoint_step_interval"),
    "checkpoint_step_interval": (70, "training.checkpoint_step_interval"),
    "validation_steps": (30, "validation.validation_step_interval"),
    "validation_step_interval": (30, "validation.validation_step_interval"),
    "validation_epochs": (2, "validation.validation_epoch_interval"),
    "flux_schedule_shift": (2.0, "flow.flow_schedule_shift"),
    "flux_guidance_scale": (3.5, "flow.flux_guidance_value"),
    "flow_matching_sigmoid_scale": (1.5, "flow.flow_sigmoid_scale"),
}
CHOICES = {  # all that the guide names for an option
    "model_flavour": ("krea", "dev", "schnell", "kontext", "fluxbooru", "libreflux"),
    "flux_lora_target": ("mmdit", "all", "all+ffs", "context", "context+ffs", "tiny", "nano"),
    "lora_init_type": ("default", "gaussian", "olora", "pissa", "loftq"),
    "optimizer": ("adamw_bf16", "optimi-lion", "optimi-stableadamw", "bnb-adamw8bit", "bnb-lion8bit-paged"),
    "base_model_precision": ("bf16", "int8-quanto", "int4-quanto", "int2-quanto", "nf4-bnb"),
    "quantize_via": ("cpu", "accelerator"),
    "lora_type": ("standard", "lycoris"),
}


def configured(folder: Path, options: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    pictures = {"id": "pictures", "instance_data_dir": "pictures", "caption_strategy": "textfile"}
    (folder / "backends.json").write_text(json.dumps([pictures]), encoding="utf-8")
    options = {"data_backend_config": "backends.json", "max_train_steps": 10, **options}
    (folder / "config.json").write_text(json.dumps(options), encoding="utf-8")
    return folder / "config.json"


def imported(folder: Path, base: str = "pico", **options: Any) -> Imported:
    found = import_config(configured(folder, options), swaps=Swaps(base=base))
    assert found.job is not None, describe(found.notes)
    return found


def said(found: Imported, option: str) -> dict[str, str]:
    return {note.kind: note.text for note in found.notes if note.option == option}


def test_the_hub_is_taken_and_a_new_repository_is_private_unless_it_says_otherwise(tmp_path: Path) -> None:
    found = imported(tmp_path, push_to_hub="true", hub_model_id="me/balls", model_card_note="Mind the bounce.")
    publishing = found.job.publishing
    assert publishing.push_to_hub and (publishing.hub_model_id, publishing.model_card_note) == ("me/balls", "Mind the bounce.")
    assert publishing.model_card_private and "there it is public" in said(found, "push_to_hub")[OTHERWISE]
    shown = imported(tmp_path, push_to_hub=True, model_card_private=False)
    assert not shown.job.publishing.model_card_private and TAKEN in said(shown, "push_to_hub")
    off = imported(tmp_path, push_to_hub=False, hub_model_id="not a name")
    assert off.job.publishing.hub_model_id == "" and off.job.name == "not-a-name" and not off.job.publishing.push_to_hub
    wrong = import_config(configured(tmp_path, {"push_to_hub": True, "hub_model_id": "not a name"}), swaps=Swaps(base="pico"))
    assert wrong.job is None and "write NAME or OWNER/NAME" in said(wrong, "hub_model_id")[REFUSED]


@pytest.mark.parametrize(
    "given", [HOOK, [HOOK, {"webhook_type": "raw", "callback_url": "https://example.org/2"}], json.dumps(HOOK), "hook.json"]
)
def test_a_webhook_is_told_of_the_end_and_no_report_shows_its_address(given: Any, tmp_path: Path) -> None:
    (tmp_path / "hook.json").write_text(json.dumps(HOOK), encoding="utf-8")
    found = imported(tmp_path, webhook_config=given)
    assert found.job.publishing.webhook_url == HOOK["webhook_url"]
    assert ("1 more are left out" in said(found, "webhook_config")[OTHERWISE]) == isinstance(given, list)
    assert IDLE in said(found, "webhook_config: message_prefix")
    assert "secret" not in describe(found.notes) + json.dumps([note._asdict() for note in found.notes])


def test_a_webhook_without_an_address_is_refused(tmp_path: Path) -> None:
    found = import_config(configured(tmp_path, {"webhook_config": {"webhook_type": "raw"}}), swaps=Swaps(base="pico"))
    assert found.job is None and "names no address" in said(found, "webhook_config")[REFUSED]


def test_the_node_hands_on_what_is_published(tmp_path: Path) -> None:
    config = configured(tmp_path, {"push_to_hub": True, "webhook_config": HOOK})
    *_, report, name, publishing = handed_on({"config": str(config), "base": "pico"})
    assert publishing.push_to_hub and publishing.webhook_url == HOOK["webhook_url"]
    assert name == "my-lora" and "secret" not in report


@pytest.mark.parametrize("name", RENAMED)
def test_a_name_of_another_version_is_the_same_option(name: str, tmp_path: Path) -> None:
    value, path = RENAMED[name]
    part, field = path.split(".")
    assert getattr(getattr(imported(tmp_path, **{name: value}).job, part), field) == value


def test_every_other_name_leads_to_an_option_that_is_known() -> None:
    assert not [name for name in ALIASES.values() if name not in OPTIONS]
    assert not [name for name in ENV_NAMES.values() if name not in OPTIONS and name not in ALIASES]


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, values in CHOICES.items() for value in values])
def test_every_choice_that_the_guide_names_comes_over(option: str, value: str, tmp_path: Path) -> None:
    found = imported(tmp_path, base="", **{"model_flavour": "dev", option: value})
    assert not [note for note in found.notes if note.kind in (REFUSED, UNKNOWN)]


def test_the_home_of_nobody_in_a_configuration_is_an_error_in_words(tmp_path: Path) -> None:
    config = simpletuner_dir(tmp_path, EXAMPLES["tread"])
    done = Command("import-simpletuner", config, "--transformer", "~nobody-here/flux.safetensors")
    assert done.code == 2 and "the home of nobody" in done.stderr
    with pytest.raises(JobError, match="the home of nobody"):
        import_config(Path("~nobody-here/config.json"))


@pytest.mark.parametrize(
    ("path", "problem"), [("1" * 300, "is too long to be a path"), ("a\0b", "has control characters in it")]
)
def test_what_can_be_no_path_is_an_error_in_words(path: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=problem):
        Place(tmp_path / "config.json").find(path)


@pytest.mark.parametrize("steps", ["1e400", 10**400], ids=["text", "number"])
def test_a_number_beyond_all_numbers_is_refused_in_words(steps: Any, tmp_path: Path) -> None:
    config = simpletuner_dir(tmp_path, EXAMPLES["tread"])
    config.write_text(json.dumps({"model_family": "flux", "max_train_steps": steps}), encoding="utf-8")
    found = import_config(config, config.with_name("multidatabackend.json"))
    assert [note.text for note in found.notes if note.kind == REFUSED and "max_train_steps" in note.text] == [
        f"max_train_steps is {steps!r}; it is a whole number"
    ]


def test_a_dataset_s_name_that_is_no_text_is_refused_in_words(tmp_path: Path) -> None:
    config = simpletuner_dir(tmp_path, EXAMPLES["tread"])
    backends = tmp_path / "spoilt.json"
    backends.write_text(json.dumps([{"id": "\ud800", "instance_data_dir": "pictures"}]), encoding="utf-8")
    assert any(note.kind == REFUSED and "dataset" in note.option for note in import_config(config, backends).notes)
