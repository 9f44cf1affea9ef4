"""SimpleTuner's options that go out or come under other names: the hub, webhooks, the names of older and newer versions."""

import json
from pathlib import Path
from typing import Any

import pytest
from simpletuner_examples import EXAMPLES, simpletuner_dir

from support import Command
from trainer_core.errors import JobError
from trainer_core.graph_parts import imported as handed_on
from trainer_core.importers.simpletuner import ALIASES, Imported, import_config
from trainer_core.importers.simpletuner_draft import IDLE, OTHERWISE, REFUSED, TAKEN, UNKNOWN, describe
from trainer_core.importers.simpletuner_files import ENV_NAMES, Place
from trainer_core.importers.simpletuner_model import Swaps

HOOK = {"webhook_type": "discord", "webhook_url": "https://example.org/secret", "message_prefix": "me"}
ARRIVES = {  # an option that has other names -> a value, and where the job has which
    "attention_mechanism": ("xformers", "base.attention_mechanism", "xformers"),
    "checkpoint_step_interval": (70, "training.checkpoint_step_interval", 70),
    "checkpoints_total_limit": (3, "training.checkpoints_total_limit", 3),
    "dynamo_backend": ("inductor", "training.torch_compile", "auto"),
    "flow_beta_schedule_alpha": (3.0, "flow.flow_beta_schedule_alpha", 3.0),
    "flow_beta_schedule_beta": (3.0, "flow.flow_beta_schedule_beta", 3.0),
    "flow_schedule_auto_shift": (True, "flow.flow_schedule_auto_shift", True),
    "flow_schedule_shift": (2.0, "flow.flow_schedule_shift", 2.0),
    "flow_sigmoid_scale": (1.5, "flow.flow_sigmoid_scale", 1.5),
    "flow_use_beta_schedule": (True, "flow.flow_use_beta_schedule", True),
    "flow_use_uniform_schedule": (True, "flow.flow_use_uniform_schedule", True),
    "flux_guidance_value": (3.5, "flow.flux_guidance_value", 3.5),
    "gradient_checkpointing": (False, "training.gradient_checkpointing", False),
    "hub_model_id": ("me/balls", "publishing.hub_model_id", "me/balls"),
    "lora_rank": (8, "lora.lora_rank", 8),
    "lr_scheduler": ("linear", "optimizer.lr_scheduler", "linear"),
    "max_train_steps": (11, "training.max_train_steps", 11),
    "model_flavour": ("schnell", "base.model_flavour", "schnell"),
    "num_train_epochs": (3, "training.num_train_epochs", 3),
    "pretrained_model_name_or_path": ("me/flux", "base.pretrained_model_name_or_path", "me/flux"),
    "pretrained_vae_model_name_or_path": ("me/vae", "base.vae_path", "me/vae"),
    "seed": (5, "training.seed", 5),
    "validation_disable": (True, "validation.num_validation_images", 0),
    "validation_epoch_interval": (2, "validation.validation_epoch_interval", 2),
    "validation_step_interval": (30, "validation.validation_step_interval", 30),
}
BESIDE = {  # what it does nothing without
    "flow_beta_schedule_alpha": {"flow_use_beta_schedule": True},
    "flow_beta_schedule_beta": {"flow_use_beta_schedule": True},
    "hub_model_id": {"push_to_hub": True},
    "num_train_epochs": {"max_train_steps": 0},
}
SAID = {  # those that do nothing here by themselves, and are said -> a value
    "checkpoint_epoch_interval": 2,
    "eval_steps_interval": 50,
    "instance_data_dir": "elsewhere",
    "minimum_image_size": 32,
    "push_checkpoints_to_hub": True,
    "resume_from_checkpoint": "latest",
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


def arrived(config: Path, option: str, value: Any) -> bool:
    """Whether the option's value is in the job's field, or at least in the report."""
    found = import_config(config)
    assert found.job is not None, describe(found.notes)
    if option in SAID:
        return any(note.option == option and note.value == value for note in found.notes)
    _, path, expected = ARRIVES[option]
    part, field = path.split(".")
    return getattr(getattr(found.job, part), field) == expected


@pytest.mark.parametrize("name", [*ARRIVES, *(name for name in ALIASES if name != "data_backend")])
def test_a_value_arrives_by_each_name_that_an_option_has_in_some_version(name: str, tmp_path: Path) -> None:
    option = ALIASES.get(name, name)
    value = SAID[option] if option in SAID else ARRIVES[option][0]
    assert arrived(configured(tmp_path, BESIDE.get(option, {}) | {name: value}), option, value)


@pytest.mark.parametrize("name", [name for name in ENV_NAMES if name != "dataloader_config"])
def test_a_value_arrives_by_each_name_that_is_for_env_files_alone(name: str, tmp_path: Path) -> None:
    option = ENV_NAMES[name]
    value = str(SAID[option] if option in SAID else ARRIVES[option][0])
    config = configured(tmp_path, {}).rename(tmp_path / "given.json").with_name("config.env")
    options = {"max_train_steps": 10} | BESIDE.get(option, {}) | {name: value, "data_backend_config": "backends.json"}
    config.write_text("\n".join(f"{key.upper()}={entry}" for key, entry in options.items()), encoding="utf-8")
    assert arrived(config, option, value)


@pytest.mark.parametrize("named", [{"data_backend": "given.json"}, {}], ids=["inside", "behind"])
def test_the_list_of_datasets_is_named_inside_or_given_behind(named: dict[str, str], tmp_path: Path) -> None:
    config, datasets = configured(tmp_path, {}), tmp_path / "given.json"
    (tmp_path / "backends.json").rename(datasets)
    config.write_text(json.dumps({"max_train_steps": 10, **named}), encoding="utf-8")
    done = Command("import-simpletuner", config, *([] if named else [datasets]), "--base", "pico")
    assert done.code == 0, done.stderr
    assert [dataset["id"] for dataset in done.report["job"]["datasets"]] == ["pictures"]


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
