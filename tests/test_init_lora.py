"""Starting from a LoRA file (init_lora), and the assistant LoRA, in whole runs."""

import json
from pathlib import Path

import pytest
from foreign_adapters import DIALECTS, keys, random_layers
from safetensors.torch import load_file, save_file

from support import job_data, run_in_process
from trainer_core.errors import JobError
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import read_shape
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir, run_dir_for
from trainer_core.setup import prepare

SHAPE = read_shape(PICO_FILES.transformer)
STILL = {"learning_rate": 1e-12}  # so that what comes out is what went in


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("lora", {"lora_rank": 4, "lora_alpha": 2.0}),
        ("lokr", {"lora_type": "lokr"}),
        ("loha", {"lora_type": "loha", "lora_rank": 4}),
    ],
)
def test_a_run_goes_on_from_the_file_of_another(tmp_path, pictures, cache, kind, spec):
    """Rank and alpha are those of the file, whatever the job says; layers of the job that the file lacks start anew."""
    lora, training = {"lora_save_precision": "fp32", "flux_lora_target": "mmdit"}, {"max_train_steps": 2}
    first = run_in_process(parse_job(job_data(pictures, lora=lora | spec, training=training)), tmp_path / "first", cache)
    again = lora | spec | {"flux_lora_target": "all", "init_lora": first["lora"], "lora_rank": 2, "lora_alpha": 8.0}
    second = run_in_process(
        parse_job(job_data(pictures, lora=again, optimizer=STILL, training=training)), tmp_path / "second", cache
    )
    old, new = load_file(first["lora"]), load_file(second["lora"])
    assert old.keys() < new.keys()
    for name, tensor in old.items():
        assert new[name].shape == tensor.shape
        assert (new[name] - tensor).abs().max() < 1e-6, name
    assert kind != "lora" or {tensor.item() for name, tensor in new.items() if name.endswith(".alpha")} == {2.0, 8.0}
    trained = run_in_process(parse_job(job_data(pictures, lora=again, training=training)), tmp_path / "third", cache)
    assert any(not load_file(trained["lora"])[name].equal(tensor) for name, tensor in old.items() if "alpha" not in name)


def test_a_kohya_file_is_taken_apart_and_trained_on(tmp_path, pictures, cache):
    """Its fused qkv is three layers here; each starts with its rows."""
    tensors = keys(DIALECTS["kohya"], random_layers(SHAPE, True, "lora"))
    save_file(
        {name: 0.01 * tensor if "lora_up" in name else tensor for name, tensor in tensors.items()}, tmp_path / "k.safetensors"
    )
    job = parse_job(job_data(pictures, lora={"init_lora": str(tmp_path / "k.safetensors")}))
    setup = prepare(job)
    assert {"transformer_blocks.0.attn.to_q", "single_transformer_blocks.0.proj_mlp"} <= set(setup.initial)
    result = run_in_process(job, tmp_path / "runs", cache)
    assert result["verified_keys"] == 3 * len(setup.adapter.names)


def test_a_file_of_another_kind_is_refused_before_anything_is_loaded(tmp_path, pictures, cache):
    first = run_in_process(
        parse_job(job_data(pictures, lora={"lora_type": "loha"}, training={"max_train_steps": 1})), tmp_path, cache
    )
    with pytest.raises(JobError, match=r"is a loha, and lora\.lora_type is 'lora'; set lora_type to 'loha'"):
        prepare(parse_job(job_data(pictures, lora={"init_lora": first["lora"]})))
    with pytest.raises(JobError, match="there is no file"):
        prepare(parse_job(job_data(pictures, lora={"init_lora": str(tmp_path / "gone.safetensors")})))


def test_an_assistant_helps_in_training_and_is_absent_from_the_pictures(tmp_path, pictures, cache):
    """Without learning, pictures with and without it are the same bytes, though the training's losses are not."""
    helper = run_in_process(parse_job(job_data(pictures, optimizer={"learning_rate": 1e-2})), tmp_path / "helper", cache)[
        "lora"
    ]
    validation = {"num_validation_images": 1, "validation_num_inference_steps": 1}

    def run(name: str, **base: object) -> dict:
        parts = {"optimizer": STILL, "validation": validation, "training": {"max_train_steps": 2}}
        data = job_data(pictures, base={"mixed_precision": "no", **base}, **parts)
        return run_in_process(parse_job(data), tmp_path / name, cache)

    def picture(result: dict) -> bytes:
        return RunDir(Path(result["run_dir"])).sample_path(2, "00").read_bytes()

    plain, helped = run("plain"), run("helped", assistant_lora_path=helper)
    assert helped["losses"] != plain["losses"] and picture(helped) == picture(plain)
    assert load_file(helped["lora"]).keys() == load_file(plain["lora"]).keys()
    assert run("weaker", assistant_lora_path=helper, assistant_lora_strength=0.5)["losses"] != helped["losses"]
    shown = run("shown", assistant_lora_path=helper, assistant_lora_inference_strength=1.0)
    assert shown["losses"] == helped["losses"] and picture(shown) != picture(plain)
    job = json.loads(RunDir(Path(helped["run_dir"])).manifest_path.read_text())["job"]
    assert job["base"]["assistant_lora_path"] == helper


def test_another_file_under_the_same_name_is_another_run(tmp_path, pictures, cache):
    first = run_in_process(parse_job(job_data(pictures, training={"max_train_steps": 1})), tmp_path, cache)
    copy = tmp_path / "start.safetensors"
    copy.write_bytes(Path(first["lora"]).read_bytes())
    job = parse_job(job_data(pictures, lora={"init_lora": str(copy)}))
    before = run_dir_for(job, tmp_path)
    copy.write_bytes(copy.read_bytes() + b" ")
    assert run_dir_for(job, tmp_path) != before
