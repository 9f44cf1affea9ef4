"""The plan before the run: counted right, rehearsed right, judged right."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks.host_memory import make_setup
from benchmarks.random_flux import FULL, original_shapes, write_hollow
from support import Command, job_data
from trainer_core.adapter.build import add_adapter
from trainer_core.adapter.plan import plan_adapter
from trainer_core.errors import JobError
from trainer_core.events import FIELDS, PHASES
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import FluxShape, empty_transformer, load_transformer, open_weights
from trainer_core.flux.quantize import METHODS, UNQUANTISED, make_quantiser, stored_bytes
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.job_file import parse_job
from trainer_core.launch import planned
from trainer_core.plan.activations import Pass, predict, sampling_growth, training_growth
from trainer_core.plan.phases import GIB, plan_phases, sampling_work, state_bytes
from trainer_core.plan.plan import (
    FITS,
    IS_TIGHT,
    TOO_BIG,
    Room,
    alternatives,
    describe,
    is_surely_small,
    judge,
    make_plan,
    ready_memory,
    room_here,
)
from trainer_core.plan.rehearse import rehearse
from trainer_core.plan.weights import kept_weights
from trainer_core.setup import prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.specs.optimizer import OptimizerSpec

CPU = torch.device("cpu")
PICO = open_weights(PICO_FILES.transformer).shape
ONE = Pass(batch=2, width=512, height=256, num_text=64)


def full_flux(folder: Path, dtype: str = "BF16") -> Path:
    """A file with the header of the whole FLUX.1 and a hole where its numbers would be."""
    path = folder / f"flux-{dtype}.safetensors"
    write_hollow(path, original_shapes(FULL), dtype)
    return path


@pytest.mark.parametrize("checkpointing", [True, False])
def test_three_small_rehearsals_tell_the_peak_of_all_blocks(checkpointing):
    def whole(shape: FluxShape) -> int:
        model = nn.Module.to(empty_transformer(shape), torch.bfloat16).requires_grad_(False)
        add_adapter(model, plan_adapter(model, LoraSpec()), seed=0)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda own: setattr(own, "grad", None))
        model.train()
        if checkpointing:
            recompute_blocks(model, 1)
        return rehearse(model, lambda: predict(model, shape, ONE).square().mean().backward()).peak

    growth = training_growth(PICO, LoraSpec(), torch.bfloat16, ONE, checkpointing=checkpointing)
    assert growth.peak(2, 4) == pytest.approx(whole(PICO), rel=0.01)
    deep = replace(PICO, num_double=3, num_single=6)
    assert growth.peak(3, 6) == pytest.approx(whole(deep), rel=0.01)


def test_checkpointing_keeps_less_and_computes_more():
    plain, saved = (training_growth(PICO, LoraSpec(), torch.bfloat16, ONE, checkpointing=on) for on in (False, True))
    assert saved.peak(2, 4) < 0.5 * plain.peak(2, 4)
    assert 1.2 < saved.flops(2, 4) / plain.flops(2, 4) < 1.6
    looking = sampling_growth(PICO, LoraSpec(), torch.bfloat16, ONE)
    assert looking.double.peak == looking.single.peak == 0 and looking.flops(2, 4) < 0.5 * plain.flops(2, 4)


@pytest.mark.parametrize("precision", ["no_change", *(name for name in METHODS if name not in ("int4-quanto", "int2-quanto"))])
def test_kept_weights_are_counted_as_they_are_stored(precision):
    loaded = load_transformer(PICO_FILES.transformer, torch.bfloat16, CPU, make_quantiser(precision, CPU))
    counted = kept_weights(empty_transformer(PICO), precision, UNQUANTISED, torch.bfloat16)
    assert counted.own == pytest.approx(stored_bytes(loaded), rel=0.03)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("adamw", 8), ("adamw_bf16", 4), ("bnb-adamw8bit", 2), ("bnb-adamw8bit-paged", 2), ("optimi-lion", 4)],
)
def test_an_optimisers_states_are_counted(name, expected):
    assert state_bytes(OptimizerSpec(optimizer=name)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    ("precision", "least", "most"), [("no_change", 23.5, 26.5), ("int8-quanto", 12.5, 15), ("nf4-bnb", 7.2, 9.5)]
)
def test_a_whole_flux_is_planned_from_its_header_alone(tmp_path, precision, least, most):
    """11.9 billion weights in 2, 1 and half a byte, the adapter with its states, activations, and Python itself."""
    phases = plan_phases(make_setup(full_flux(tmp_path), precision, 512))
    assert [phase.name for phase in phases] == ["encode pictures", "encode captions", "load", "train"]
    assert least < (phases[-1].host + phases[-1].mapped) / GIB < most


def test_only_what_keeps_the_files_format_is_mapped(tmp_path):
    as_it_is, converted = (
        plan_phases(make_setup(full_flux(tmp_path, dtype), "no_change", 512))[-1] for dtype in ("BF16", "F32")
    )
    assert 22 * GIB < as_it_is.mapped < 23 * GIB and converted.mapped == 0
    assert converted.host - as_it_is.host == as_it_is.mapped


def test_a_smaller_rank_is_planned_with_its_own_adapter(tmp_path):
    setup = make_setup(full_flux(tmp_path), "nf4-bnb", 512)
    smaller = next(other for change, other in alternatives(setup) if change == {"lora.lora_rank": 4})
    assert smaller.num_parameters * 4 == setup.num_parameters
    assert plan_phases(smaller)[-1].host < plan_phases(setup)[-1].host


def test_as_many_pictures_are_planned_as_are_sampled_together(pictures):
    one, several = (
        prepare(parse_job(job_data(pictures, validation={"validation_prompts": ["a"] * count, "num_validation_images": 4})))
        for count in (1, 100)
    )
    assert sampling_work(one) * 4 < sampling_work(several)


def test_the_verdict_names_what_costs_least_and_would_fit(tmp_path):
    setup = make_setup(full_flux(tmp_path), "no_change", 512)
    assert make_plan(setup, Room(64 * GIB, 0)).verdict == FITS
    assert make_plan(setup, Room(25 * GIB, 0)).verdict == IS_TIGHT
    smaller = make_plan(setup, Room(16 * GIB, 0))
    assert (smaller.verdict, smaller.changes) == (TOO_BIG, {"base.base_model_precision": "int8-quanto"})
    smallest = make_plan(setup, Room(9 * GIB, 0))
    assert smallest.changes == {"base.base_model_precision": "nf4-bnb"}
    nothing = make_plan(setup, Room(GIB, 0))
    assert nothing.changes is None and "no setting makes it fit" in describe(nothing)
    assert "it would fit with base.base_model_precision: int8-quanto" in describe(smaller)


def test_the_plan_is_told_by_the_names_and_units_of_the_other_events(tmp_path):
    setup = replace(make_setup(full_flux(tmp_path), "int8-quanto", 512), num_recomputed=57)
    told = planned(make_plan(setup, Room(64 * GIB, 20 * GIB)), setup)
    assert told.keys() == FIELDS["plan"] and told["room"] == {"ram": 64.0, "card": 20.0} and told["verdict"] == FITS
    assert set(told["phases"]) <= set(PHASES) and {"quantise", "train"} <= set(told["phases"])
    phase = next(phase for phase in plan_phases(setup) if phase.name == "train")
    assert told["phases"]["train"]["ram"] == pytest.approx((phase.host + phase.mapped) / GIB, abs=1e-3)


@pytest.mark.parametrize(("precision", "enough"), [("no_change", 300), ("bf16", 300), ("nf4-bnb", 600)])
def test_what_is_surely_small_needs_less_than_a_quarter_and_is_told_by_its_numbers(tmp_path, precision, enough):
    setup = make_setup(full_flux(tmp_path), precision, 512)
    needed = max(phase.host + phase.mapped for phase in plan_phases(setup))
    assert not is_surely_small(setup, Room(4 * needed, 0))
    assert is_surely_small(setup, Room(enough * GIB, 0))


def test_freed_memory_is_kept_for_reuse_only_where_as_much_again_is_there(tmp_path):
    plan = make_plan(make_setup(full_flux(tmp_path), "int8-quanto", 512), Room(64 * GIB, 0))
    needed = max(phase.host + phase.mapped for phase in plan.phases)
    assert replace(plan, room=Room(2 * needed, 0)).has_room_for_holes
    assert not replace(plan, room=Room(2 * needed - 1, 0)).has_room_for_holes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators give memory back by themselves")
@pytest.mark.parametrize("blocks", [(4, 8), (19, 38)])
def test_a_run_keeps_what_is_freed_where_its_plan_says_so_and_gives_it_back_elsewhere(tmp_path, blocks):
    """With 24 GB the small base leaves room and the whole one does not."""
    path = tmp_path / "flux.safetensors"
    write_hollow(path, original_shapes(replace(FULL, num_double=blocks[0], num_single=blocks[1])), "BF16")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = [sys.executable, Path(__file__).with_name("kept_memory.py"), path]
    done = subprocess.run(child, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    has_room, is_reused = json.loads(done.stdout)
    assert has_room == is_reused


def test_what_is_small_is_not_rehearsed_and_what_cannot_fit_is_refused(pictures):
    setup = prepare(parse_job(job_data(pictures)))
    assert is_surely_small(setup, room_here(CPU)) and judge(plan_phases(setup), room_here(CPU)) == FITS
    ready_memory(setup)
    huge = {"train_batch_size": 1024, "max_train_steps": 1}
    data = job_data(pictures, training=huge)
    data["datasets"][0]["resolution"] = 4096
    with pytest.raises(JobError, match=r"does not fit into the memory there is:(?s:.*)it would fit with|skip_memory_check"):
        ready_memory(prepare(parse_job(data)))
    data["training"]["skip_memory_check"] = True
    ready_memory(prepare(parse_job(data)))


def test_a_job_of_a_few_prompts_counts_no_more_than_these_as_sampled_at_once(pictures):
    validation = {"num_validation_images": 4, "validation_prompts": list("abcdefgh"), "validation_resolution": "64x64"}
    setup = prepare(parse_job(job_data(pictures, validation=validation)))
    assert len(setup.shots) == 8
    assert is_surely_small(setup, Room(8 * GIB, 0)) and not is_surely_small(setup, Room(4 * GIB, 0))


def test_check_prints_the_plan_times_a_step_and_draws(pictures, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"version": 1, **job_data(pictures)}), encoding="utf-8")
    checked = Command("check", tmp_path / "job.json", "--probe", "--chart", tmp_path / "plan.png")
    assert checked.code == 0
    plan = checked.report["plan"]
    assert plan["verdict"] == "fits" and plan["changes"] == {}
    assert [phase["name"] for phase in plan["phases"]] == ["encode pictures", "encode captions", "load", "train"]
    assert plan["seconds_per_step"] > 0
    assert "verdict: fits" in checked.report["plan_text"]
    with Image.open(tmp_path / "plan.png") as chart:
        assert chart.width == 840
