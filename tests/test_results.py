"""What is believed of a result.json, or a checkpoint's state, that anybody may have put there: names of the run's own files."""

import json

import pytest

from trainer_core.errors import JobError
from trainer_core.run_dir import RunDir
from trainer_core.saved import find_lora
from trainer_core.writing import Damaged, digest_of, write_sealed

PICTURE, LORA = "samples/step-000001/00.png", "cat.safetensors"
GOOD = {"lora": LORA, "before_after": None, "samples": [PICTURE], "steps": 1, "losses": [0.5], "evaluations": []}


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A finished run, with what is not its own around it."""
    (tmp_path / "secret.safetensors").write_bytes(b"secret")
    (tmp_path / "secret.png").write_bytes(b"secret")
    run = RunDir(tmp_path / "cat-1")
    for name in (LORA, "cat.ckpt", PICTURE):
        (run.root / name).parent.mkdir(parents=True, exist_ok=True)
        (run.root / name).write_bytes(b"its own")
    (run.root / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    run.job_path.write_text(
        json.dumps({"name": "cat", "datasets": [{"instance_data_dir": "x"}], "base": {"model_flavour": "pico"}})
    )
    return run


def test_a_good_one_names_absolute_paths(run):
    write_sealed(run.result_path, GOOD | {"run_id": "another", "run_dir": "/"})
    assert (run.result()["run_id"], run.result()["run_dir"]) == (run.run_id, str(run.root))
    assert run.result() == run.intact_result()
    assert run.result()["lora"] == str(run.root / LORA) and run.result()["samples"] == [str(run.root / PICTURE)]
    assert find_lora(run, "final") == (run.root / LORA, 1, False)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lora": "/etc/hostname"},
        {"lora": "../secret.safetensors"},
        {"lora": "link.safetensors"},
        {"lora": "cat.ckpt"},  # ComfyUI opens it as a pickle
        {"lora": "a\0.safetensors"},
        {"lora": ["cat.safetensors"]},
        {"ema_lora": "job.json"},
        {"before_after": LORA},
        {"samples": ["../secret.png"]},
        {"samples": "samples"},
        {"samples": None},
        {"steps": "1"},
        {"losses": {}},
        {"digests": []},
        {"digests": {"[" * 300: ""}},
        {"digests": {"../secret.safetensors": ""}},
        {"digests": {LORA: "not its own"}},
        {"evaluations": 1},
    ],
    ids=str,
)
def test_one_that_names_anything_else_is_damaged(run, wrong):
    write_sealed(run.result_path, GOOD | wrong)
    assert run.intact_result() is None
    with pytest.raises(JobError):
        find_lora(run, "final")
    if "not its own" not in str(wrong):
        with pytest.raises(Damaged, match="is damaged"):
            run.result()


@pytest.mark.parametrize("state", [None, {}, {"digests": []}, {"digests": {f"lora/{LORA}": "another"}}], ids=str)
def test_a_checkpoint_s_lora_is_taken_only_where_its_state_knows_it(run, state):
    folder = run.checkpoints_dir / "step-00000001"
    (folder / "lora").mkdir(parents=True)
    (folder / "lora" / LORA).write_bytes(b"its own")
    if state is not None:
        write_sealed(folder / "state.json", state)
    with pytest.raises(Damaged, match="is damaged or gone"):
        find_lora(run, "1")
    write_sealed(folder / "state.json", {"digests": {f"lora/{LORA}": digest_of(folder / "lora" / LORA)}})
    assert find_lora(run, "1").path == folder / "lora" / LORA
