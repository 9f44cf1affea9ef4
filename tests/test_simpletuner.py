"""SimpleTuner's configurations as jobs: every option is accounted for, by name and by meaning."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from simpletuner_examples import EXAMPLES, FILES, library, simpletuner_dir

from support import Command
from trainer_core.importers.simpletuner import ALIASES, OPTIONS, Imported, import_config
from trainer_core.importers.simpletuner_dataset_options import DATASET_ALIASES, DATASET_OPTIONS
from trainer_core.importers.simpletuner_draft import IDLE, OTHERWISE, REFUSED, TAKEN, UNKNOWN, describe
from trainer_core.importers.simpletuner_model import Swaps
from trainer_core.importers.simpletuner_rest import FAMILIES
from trainer_core.job_file import parse_job


def imported(config: Path, **swaps: Any) -> Imported:
    found = import_config(config, swaps=Swaps(**swaps))
    assert found.job is not None, describe(found.notes)
    return found


def written(folder: Path, options: dict[str, Any], *datasets: dict[str, Any]) -> Path:
    """A configuration of these options with these datasets, or one of the usual kind."""
    folder.mkdir(exist_ok=True)
    pictures = {"id": "pictures", "instance_data_dir": "pictures", "caption_strategy": "textfile"}
    (folder / "backends.json").write_text(json.dumps(datasets or [pictures]), encoding="utf-8")
    options = {"data_backend_config": "backends.json", "max_train_steps": 10, **options}
    (folder / "config.json").write_text(json.dumps(options), encoding="utf-8")
    return folder / "config.json"


def kinds(found: Imported, option: str) -> dict[str, str]:
    """Kind -> text of what was said of the option."""
    return {note.kind: note.text for note in found.notes if note.option == option}


def test_every_option_of_the_original_s_flux_trainer_is_in_the_tables() -> None:
    lines = (FILES / "options.txt").read_text(encoding="utf-8").splitlines()
    named = [line.split() for line in lines if not line.startswith("#")]
    families = tuple(FAMILIES)
    missing = [
        name for (name, *rest) in named if not rest and name not in {*OPTIONS, *ALIASES} and not name.startswith(families)
    ]
    assert missing == []
    known = {*DATASET_OPTIONS, *DATASET_ALIASES}
    assert [rest[0] for _, *rest in named if rest and rest[0] not in known and not rest[0].startswith("aws_")] == []
    assert len(named) > 240


def test_each_given_option_is_in_the_report_and_an_unknown_one_has_its_neighbour(tmp_path: Path) -> None:
    options = {name: "x" if row.become is None and not row.path else None for name, row in OPTIONS.items()}
    options |= {"lora_rnak": 3, "tracker_colour": "blue"}
    del options["data_backend_config"]
    found = import_config(written(tmp_path, options), swaps=Swaps(base="pico"), partly=True)
    assert options.keys() <= {note.option for note in found.notes}
    assert kinds(found, "lora_rnak") == {UNKNOWN: "did you mean lora_rank?"}
    assert "is not known here" in kinds(found, "tracker_colour")[UNKNOWN]


FORMS = {
    "config.json": '{"--lora_rank": "4", "learning_rate": "2e-4", "--validation_prompt": "a dog, sitting",'
    ' "TRAINER_EXTRA_ARGS": "--flow_schedule_shift=2 --data_backend_config backends.json --use_ema"}',
    "config.toml": 'lora_rank = 4\nlearning_rate = 2e-4\nvalidation_prompt = "a dog, sitting"\nflow_schedule_shift = 2\n'
    'data_backend_config = "backends.json"\nuse_ema = true\n',
    "config.env": "# a comment\nexport LORA_RANK=4\nexport LEARNING_RATE=2e-4 # and one here\nNAME='a dog'\n"
    'export VALIDATION_PROMPT="$NAME, sitting"\nexport DATALOADER_CONFIG="backends.json"\n'
    'export TRAINER_EXTRA_ARGS="--flow_schedule_shift=2"\nTRAINER_EXTRA_ARGS+=" --use_ema=true"\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_of_a_configuration_is_read(name: str, tmp_path: Path) -> None:
    if name.endswith("toml") and sys.version_info < (3, 11):
        pytest.skip("reading TOML needs Python 3.11")
    written(tmp_path, {})
    (tmp_path / "config.json").unlink()
    (tmp_path / name).write_text(FORMS[name], encoding="utf-8")
    job = imported(tmp_path, base="pico").job  # its folder will do
    assert (job.lora.lora_rank, job.optimizer.learning_rate, job.flow.flow_schedule_shift) == (4, 2e-4, 2.0)
    assert job.validation.validation_prompts == ("a dog, sitting",)
    assert job.training.use_ema and job.training.ema_validation == "comparison"
    assert (job.training.max_train_steps, job.training.num_train_epochs) == (0, 1)


def test_comments_and_a_comma_too_many_do_not_hurt_what_stands_in_quotes(tmp_path: Path) -> None:
    written(tmp_path, {})
    text = '{\n"data_backend_config": "backends.json", # here\n"validation_prompt": "a // b # c,}", // there\n}\n'
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert imported(tmp_path, base="pico").job.validation.validation_prompts == ("a // b # c,}",)


def test_what_does_nothing_beside_the_others_is_dropped_and_said(tmp_path: Path) -> None:
    options = {"lr_scheduler": "constant", "lr_warmup_steps": 100, "lr_power": 2, "huber_c": 0.3, "ema_decay": 0.9}
    options |= {"flux_fast_schedule": True, "flow_schedule_shift": 3, "flow_use_beta_schedule": True, "num_eval_images": 8}
    options |= {"validation_negative_prompt": "blurry", "validation_guidance_real": 1.0, "lora_type": "lycoris"}
    options |= {"lora_dropout": 0.1, "lora_init_type": "pissa", "num_validation_images": 2}
    found = imported(written(tmp_path, options))
    for option in options.keys() - {
        "lr_scheduler",
        "validation_guidance_real",
        "lora_type",
        "flow_use_beta_schedule",
        "flow_schedule_shift",
    }:
        assert IDLE in kinds(found, option), option
    assert found.job.flow.flow_use_beta_schedule and not found.job.flow.flux_fast_schedule


def test_masks_references_and_eval_sets_lie_with_their_pictures(tmp_path: Path) -> None:
    found = imported(
        written(
            tmp_path,
            {"eval_steps_interval": 50},
            {"id": "cat", "instance_data_dir": "cats", "conditioning_data": "masks", "crop": True, "crop_style": "centre"},
            {
                "id": "masks",
                "dataset_type": "conditioning",
                "conditioning_type": "mask",
                "instance_data_dir": "m",
                "crop": True,
            },
            {"id": "pairs", "instance_data_dir": "after", "caption_strategy": "textfile", "disable_multiline_split": True},
            {
                "id": "before",
                "dataset_type": "conditioning",
                "conditioning_type": "reference_loose",
                "source_dataset_id": "pairs",
                "instance_data_dir": "before",
            },
            {"id": "held", "dataset_type": "eval", "instance_data_dir": "held", "repeats": 3, "caption_strategy": "filename"},
        )
    )
    cat, pairs, held = found.job.datasets
    assert (cat.mask_data_dir, cat.crop_style, cat.caption_strategy) == (str(tmp_path / "m"), "center", "filename")
    assert (pairs.reference_data_dir, pairs.reference_geometry) == (str(tmp_path / "before"), "loose")
    assert not pairs.multiline_captions
    assert (held.dataset_type, held.repeats, found.job.validation.eval_steps_interval) == ("eval", 0, 50)
    assert kinds(found, "held: repeats")[IDLE] == "an eval dataset is shown as it is"


def test_captions_and_crops_of_a_dataset(tmp_path: Path) -> None:
    found = imported(
        written(
            tmp_path,
            {"resolution": 512, "caption_strategy": "textfile"},
            {
                "id": "tags",
                "instance_data_dir": "tags",
                "instance_prompt": "ohwx",
                "prepend_instance_prompt": True,
                "caption_shuffle": {"enable": True, "count": 3, "position_start": 1},
                "crop": True,
                "crop_aspect": "random",
                "crop_aspect_buckets": [{"aspect_bucket": 1.5, "weight": 0.25}, 1.0],
                "vae_cache_clear_each_epoch": True,
                "probability": 0.5,
            },
            {
                "id": "table",
                "instance_data_dir": "table",
                "caption_strategy": "parquet",
                "metadata_backend": "parquet",
                "parquet": {"path": "t.jsonl", "filename_column": "id", "caption_column": ["long", "short"]},
                "only_instance_prompt": False,
                "probability": 0,
            },
        )
    )
    tags, table = found.job.datasets
    assert (tags.caption_prefix, tags.shuffle_tags, tags.caption_variants, tags.keep_tags) == ("ohwx", True, 4, 1)
    assert (tags.crop_style, tags.num_crops, tags.crop_aspect_buckets) == ("random", 4, ("1.5: 0.25", "1"))
    assert (tags.resolution, tags.multiline_captions, tags.probability) == ((512.0,), True, 0.5)
    assert (table.caption_strategy, table.caption_table, table.filename_column) == ("jsonl", str(tmp_path / "t.jsonl"), "id")
    assert (table.caption_column, table.disabled) == ("long", True)


def test_a_lycoris_configuration_is_taken_with_its_targets_and_factors(tmp_path: Path) -> None:
    lycoris = {
        "algo": "lokr",
        "multiplier": 1.0,
        "full_matrix": True,
        "factor": 10,
        "apply_preset": {"target_module": ["Attention"], "module_algo_map": {"Attention": {"factor": 12}}},
    }
    lora = imported(written(tmp_path, {"lora_type": "lycoris", "lycoris_config": lycoris})).job.lora
    assert (lora.lora_type, lora.flux_lora_target, lora.lokr_factor, lora.lokr_factor_feed_forward) == ("lokr", "all", 12, 10)
    small = {"algo": "loha", "linear_dim": 32, "linear_alpha": 16}
    (tmp_path / "lycoris.json").write_text(json.dumps(small), encoding="utf-8")
    lora = imported(written(tmp_path, {"lora_type": "lycoris", "lycoris_config": "lycoris.json"})).job.lora
    assert (lora.lora_type, lora.lora_rank, lora.lora_alpha) == ("loha", 32, 16.0)
    assert "ff.net.0.proj" in lora.peft_lora_target_modules
    refused = import_config(written(tmp_path, {"lora_type": "lycoris", "lycoris_config": {"algo": "tlora"}}))
    assert refused.job is None and "tlora is not trained here" in kinds(refused, "lycoris_config")[REFUSED]


def test_the_base_is_the_one_that_the_original_would_load(tmp_path: Path) -> None:
    whole = "pretrained_model_name_or_path"
    base = imported(written(tmp_path, {})).job.base
    assert (base.model_flavour, base.pretrained_model_name_or_path) == ("krea", "black-forest-labs/FLUX.1-Krea-dev")
    found = imported(written(tmp_path, {"model_flavour": "krea", whole: "black-forest-labs/flux.1-dev"}), allow_download=True)
    assert found.job.base.model_flavour == "dev" and found.job.base.allow_download
    assert "the label says krea" in kinds(found, "model_flavour")[OTHERWISE]
    (tmp_path / "flux.gguf").touch()
    base = imported(written(tmp_path, {"model_flavour": "dev", whole: "flux.gguf"}), vae="ae.safetensors").job.base
    assert (base.transformer_path, base.vae_path) == (str(tmp_path / "flux.gguf"), str(Path("ae.safetensors").absolute()))
    assert base.pretrained_model_name_or_path == "black-forest-labs/FLUX.1-dev"
    own = {name: f"{name}.file" for name in Swaps._fields[1:7]}
    base = imported(written(tmp_path, {"model_flavour": "schnell", "flux_fast_schedule": True}), **own).job.base
    assert base.pretrained_model_name_or_path == "" and base.t5_tokenizer_path.endswith("t5_tokenizer.file")


def test_defects_and_defaults_that_harm_are_named_with_what_is_done_instead(tmp_path: Path) -> None:
    found = imported(written(tmp_path, {"seed": -1, "mixed_precision": "fp16", "lr_scheduler": "cosine", "prodigy_steps": 3}))
    for option in ("learning_rate", "train_batch_size", "lora_dropout", "caption_dropout_probability", "validation_guidance"):
        assert "not given: there" in kinds(found, option)[OTHERWISE]
    assert found.job.training.seed == 42 and found.job.base.mixed_precision == "bf16"
    assert "swings for ever" in kinds(found, "lr_scheduler")[OTHERWISE]
    assert found.job.flow.flow_schedule_shift == 3.0 and "whose guide says" in kinds(found, "flow_schedule_shift")[OTHERWISE]
    libreflux = imported(written(tmp_path, {"model_flavour": "libreflux", "validation_num_inference_steps": 20})).job
    assert libreflux.flow.flux_attention_masked_training and libreflux.validation.validation_num_inference_steps == 28


def test_an_optimiser_of_the_original_s_becomes_ours_with_the_same_arguments(tmp_path: Path) -> None:
    config = {"optimizer": "bnb-adamw", "optimizer_config": "weight_decay=0.1,beta1=0.8,momentum=1"}
    found = imported(written(tmp_path, config))
    assert found.job.optimizer.optimizer == "adamw" and found.job.optimizer.adam_beta1 == 0.8
    assert found.job.optimizer.optimizer_config == "eps=1e-6,weight_decay=0.1"
    assert IDLE in kinds(found, "optimizer_config: momentum")
    prodigy = imported(written(tmp_path, {"optimizer": "prodigy", "learning_rate": 1e-4, "lr_scheduler": "cosine"})).job
    assert (prodigy.optimizer.learning_rate, prodigy.optimizer.lr_scheduler) == (1.0, "constant_with_warmup")
    refused = import_config(written(tmp_path, {"optimizer": "soap"}))
    assert "choose one of adamw_bf16" in kinds(refused, "optimizer")[REFUSED]


@pytest.mark.parametrize(("name", "ours"), [("int8dq-torchao", "int8-torchao"), ("fp8-native", "fp8-torchao")])
def test_a_precision_that_multiplies_in_eight_bits_does_so_here(name: str, ours: str, tmp_path: Path) -> None:
    found = imported(written(tmp_path, {"base_model_precision": name}))
    assert found.job.base.base_model_precision == ours and found.job.base.quantized_matmul
    assert kinds(found, "base_model_precision")[OTHERWISE].endswith(f"{ours} with base.quantized_matmul is the nearest")
    assert not imported(written(tmp_path, {"base_model_precision": ours})).job.base.quantized_matmul


def test_trackers_are_taken_and_those_that_are_not_here_named(tmp_path: Path) -> None:
    found = imported(written(tmp_path, {"report_to": "wandb,comet_ml", "tracker_project_name": "mine"}))
    assert (found.job.training.report_to, found.job.training.tracker_project_name) == ("wandb", "mine")
    assert kinds(found, "report_to")[OTHERWISE].endswith("; there is no comet_ml")
    assert imported(written(tmp_path, {"report_to": "tensorboard,wandb"})).job.training.report_to == "all"
    alone = imported(written(tmp_path, {"report_to": "none", "tracker_project_name": "mine"}))
    assert IDLE in kinds(alone, "report_to") and IDLE in kinds(alone, "tracker_project_name")


def test_a_library_s_nicknames_become_names_of_files_and_the_token_the_subject(tmp_path: Path) -> None:
    job = imported(simpletuner_dir(tmp_path, EXAMPLES["prompt library"])).job
    prompts = json.loads(job.validation.user_prompt_library)
    assert list(prompts) == [name.replace("<token>", "token") for name in library()]
    assert "portrait of the name of your subject goes here," in prompts["anime_token"]


def test_the_command_writes_the_job_and_reports_in_parts(tmp_path: Path) -> None:
    config, out = simpletuner_dir(tmp_path, EXAMPLES["tread"]), tmp_path / "job.json"
    done = Command("import-simpletuner", config, "--base", "pico", "--out", out)
    assert done.code == 0 and done.report["written"] == str(out)
    assert done.report["next"].endswith(f"--out {tmp_path / 'output' / 'models'}")
    assert parse_job(json.loads(out.read_text(encoding="utf-8"))).routes[0].selection_ratio == 0.5
    assert {note["option"] for note in done.report["notes"][TAKEN]} >= {"train_batch_size", "data_backend_config"}
    assert "taken with another meaning (" in done.report["text"]


def test_what_may_not_be_read_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    config = written(tmp_path / "inside", {"user_prompt_library": str(tmp_path / "secret.json")})
    (tmp_path / "secret.json").write_text('{"key": "hidden"}', encoding="utf-8")
    found = import_config(config, may_read=lambda path: tmp_path / "inside" in path.parents)
    assert found.job is None and "may read here" in kinds(found, "user_prompt_library")[REFUSED]
    assert "hidden" not in describe(found.notes)


def test_what_is_refused_makes_no_job_unless_it_is_to_be_skipped(tmp_path: Path) -> None:
    config = written(tmp_path, {"controlnet": True, "lora_rank": "many"})
    refused = Command("import-simpletuner", config)
    assert refused.code == 2
    assert "ControlNets are not trained here" in refused.stderr and "lora_rank = many" in refused.stderr
    assert Command("import-simpletuner", config, "--skip-refused").report["job"]["lora"]["lora_rank"] == 16
