"""Whole runs with each kind of adapter: exact resume, dropout that belongs to the sample, losses that fall, files that fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support import Command, job_data, make_pictures, run_in_process
from trainer_core.adapter.dropout import SeededDropout, find_dropouts, seed_dropouts
from trainer_core.errors import StopRequested
from trainer_core.events import EventReader
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir

DROPOUT = {"lora_rank": 4, "lora_dropout": 0.3, "flux_lora_target": "all+ffs", "lora_save_precision": "fp32"}
KINDS = {
    "lora with dropout": DROPOUT,
    "pissa with dropout": DROPOUT | {"lora_init_type": "pissa"},
    "olora": {"lora_rank": 4, "lora_init_type": "olora", "rank_pattern": ["single 0-1: 8"]},
    "lokr": {"lora_type": "lokr", "flux_lora_target": "all+ffs"},
    "lokr of low rank": {"lora_type": "lokr", "lora_rank": 4, "lokr_full_matrix": False},
    "loha": {"lora_type": "loha", "lora_rank": 4, "lora_alpha": 2.0},
}
ROUTES = [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}]


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, pictures, cache, kind):
    job = parse_job(
        job_data(
            pictures,
            lora=KINDS[kind],
            training={"gradient_accumulation_steps": 2, "checkpoint_step_interval": 0, "max_train_steps": 4},
        )
    )
    straight = run_in_process(job, tmp_path / "straight", cache)
    torch.rand(3)  # whatever else drew from the global state meanwhile
    with pytest.raises(StopRequested):
        run_in_process(job, tmp_path / "resumed", cache, stop_before=2)
    resumed = run_in_process(job, tmp_path / "resumed", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()


@pytest.mark.parametrize("kind", ["lora with dropout", "pissa with dropout", "lokr", "loha"])
def test_checkpointing_changes_memory_not_numbers(tmp_path, pictures, cache, kind):
    results = [
        run_in_process(
            parse_job(
                job_data(
                    pictures,
                    lora=KINDS[kind],
                    routes=routes,
                    training={"gradient_checkpointing": on, "max_train_steps": 3},
                )
            ),
            tmp_path / f"{on}{len(routes)}",
            cache,
        )["losses"]
        for routes in ([], ROUTES)
        for on in (False, True)
    ]
    assert results[0] == pytest.approx(results[1], rel=1e-5) and results[2] == pytest.approx(results[3], rel=1e-5)
    assert results[0] != results[2]


def test_accumulation_equals_the_large_batch_with_dropout(tmp_path, cache):
    data = job_data(make_pictures(tmp_path / "pictures", 1), lora=DROPOUT)
    data["datasets"][0]["repeats"] = 4
    files = []
    for batch, accumulation in ((5, 1), (1, 5), (3, 2)):
        data["training"] |= {"train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_train_steps": 2}
        result = run_in_process(parse_job(data), tmp_path / f"{batch}", cache)
        files.append((result["losses"], load_file(result["lora"])))
    (large_losses, large), *others = files
    for losses, tensors in others:
        assert losses == pytest.approx(large_losses, rel=1e-5)
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, large[name], rtol=0, atol=1e-4)  # AdamW moves by up to 1e-3 a step


@pytest.mark.parametrize(
    ("lora", "learning_rate"),
    [
        ({"lora_type": "lokr"}, 3e-3),
        ({"lora_type": "lokr", "lokr_full_matrix": False, "lora_rank": 16}, 3e-3),
        ({"lora_type": "loha", "lora_rank": 16}, 3e-3),
        ({"lora_init_type": "pissa", "lora_rank": 16}, 3e-3),
        ({"lora_init_type": "olora", "lora_rank": 16}, 3e-3),
        ({"lora_dropout": 0.1, "lora_rank": 16}, 3e-3),
    ],
    ids=["lokr", "lokr of low rank", "loha", "pissa", "olora", "dropout"],
)
def test_training_lowers_the_loss_on_what_it_sees(tmp_path, pictures, cache, lora, learning_rate):
    data = job_data(
        pictures,
        lora=lora | {"flux_lora_target": "all+ffs"},
        optimizer={"learning_rate": learning_rate},
        training={"max_train_steps": 16},
    )
    losses = run_in_process(parse_job(data), tmp_path, cache)["losses"]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@pytest.mark.parametrize("kind", ["lora with dropout", "lokr", "loha"])
def test_the_manifest_the_events_and_inspect_tell_of_the_adapter(tmp_path, pictures, cache, kind):
    result = run_in_process(parse_job(job_data(pictures, lora=KINDS[kind], training={"max_train_steps": 2})), tmp_path, cache)
    run_dir = RunDir(Path(result["run_dir"]))
    manifest = json.loads(run_dir.manifest_path.read_text())
    shown = Command("inspect", result["lora"]).report
    assert manifest["adapter"]["kind"] == shown["kind"] == kind.split()[0]
    assert manifest["adapter"]["dropout"] == (0.3 if "dropout" in kind else 0.0)
    assert manifest["parameters"] == shown["parameters"]
    assert len(manifest["modules"]) == shown["modules"] == sum(manifest["adapter"]["ranks"].values())
    verified = [event for event in EventReader(run_dir.events_path).new() if event["event"] == "verified"]
    assert verified[0]["matched"] == verified[0]["keys"] == len(load_file(result["lora"]))


def test_a_wrong_choice_of_layers_is_an_error_before_anything_is_loaded(tmp_path, pictures):
    for lora, message in (
        ({"lora_blocks": "single 9"}, "this base has double 0-1, single 0-3"),
        ({"lora_init_type": "loftq"}, "not quantised"),
        ({"rank_pattern": ["all: 3"]}, "lora.rank_pattern.0"),
    ):
        (tmp_path / "job.json").write_text(json.dumps(job_data(pictures, lora=lora)))
        command = Command("check", tmp_path / "job.json")
        assert command.code == 2 and message in command.report["error"]


def test_the_share_of_zeroes_is_the_one_asked_for_and_the_mean_stays():
    dropout, x = SeededDropout(0.25, seed=1, layer="a"), torch.ones(2, 64, 256)
    seed_dropouts([dropout], step=3, first=0)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.01)
    assert not torch.equal(dropped[0], dropped[1])
    assert torch.equal(dropout(x), dropped)
    assert torch.equal(dropout.eval()(x), x)


def test_a_mask_belongs_to_seed_step_sample_and_layer():
    def mask(seed: int = 1, layer: str = "a", step: int = 3, first: int = 5) -> torch.Tensor:
        dropout = SeededDropout(0.5, seed, layer)
        seed_dropouts([dropout], step=step, first=first)
        return dropout(torch.ones(1, 8, 8))

    assert torch.equal(mask(), mask())
    others = (mask(seed=2), mask(layer="b"), mask(step=4), mask(first=6))
    assert not any(torch.equal(mask(), other) for other in others)
    both = SeededDropout(0.5, 1, "a")
    seed_dropouts(find_dropouts(both), step=3, first=4)
    assert torch.equal(both(torch.ones(2, 8, 8))[1:], mask())
