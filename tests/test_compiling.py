"""torch.compile of the blocks: which ones, when it pays, what it needs, and that changing lengths make no new graphs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from support import add_lora, job_data, run_in_process
from trainer_core.context import RunContext
from trainer_core.errors import JobError, StopRequested
from trainer_core.events import EventLog
from trainer_core.flux import compiling
from trainer_core.flux.compiling import compile_blocks, compiled_layers
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer
from trainer_core.flux.predict import predict_velocity
from trainer_core.flux.recompute import recompute_blocks
from trainer_core.flux.routing import TokenRouter
from trainer_core.job_file import parse_job
from trainer_core.run_dir import RunDir
from trainer_core.setup import prepare
from trainer_core.specs.adapter import LoraSpec
from trainer_core.trainee import build_trainee
from trainer_core.tread import Span


def test_blocks_that_would_need_a_graph_for_themselves_are_left_as_they_are():
    without = set(compiled_layers(19, 38, []))
    assert set(range(57)) - without == {0, 19}
    assert without - set(compiled_layers(19, 38, [Span(0.5, 2, 55)])) == {2, 55}
    assert compiled_layers(1, 1, []) == [0, 1], "all of a kind rather than none"
    assert compiled_layers(2, 4, [Span(0.5, 1, 4)]) == [0, 1, 3, 5]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_other_sizes_batches_and_token_counts_make_no_new_graphs_and_the_same_gradients():
    """With recomputation, an adapter, and a route that keeps another number of tokens each time. A minute or two."""
    span, outcomes = Span(0.5, 1, 4), []
    sizes = [(2, 8, 12, 9), (3, 6, 10, 8), (4, 12, 8, 13)]  # samples, H, W, kept tokens
    counter = CompileCounterWithBackend("aot_eager")
    for is_compiled in (False, True):
        model, counts, found = load_transformer(PICO_FILES.transformer, torch.float32, torch.device("cpu")).train(), [], []
        parameters = add_lora(model, LoraSpec(lora_rank=2))
        recompute_blocks(model, 1)
        router, random = TokenRouter(model, [span]), torch.Generator().manual_seed(0)
        if is_compiled:
            compile_blocks(model, [span], backend=counter)
        for B, H, W, K in sizes:
            x, pooled = torch.randn(B, 16, H, W, generator=random), torch.randn(B, model.config.pooled_projection_dim)
            text = torch.randn(B, 5, model.config.joint_attention_dim, generator=random)
            kept = torch.stack([torch.randperm(H * W // 4, generator=random)[:K].sort().values for _ in range(B)])
            with router.routed([kept]):
                loss = predict_velocity(model, x, torch.full((B,), 0.5), text, pooled * 0, torch.ones(B)).square().mean()
            loss.backward()
            found.append((loss.detach(), [parameter.grad.clone() for parameter in parameters.values()]))
            counts.append(counter.frame_count)
        outcomes.append(found)
    torch._dynamo.reset()
    assert 0 < counts[0] == counts[-1], counts
    torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-6)


def test_a_trainee_has_its_blocks_compiled_where_that_is_wished_for(tmp_path, pictures):
    for wish, expected in (("off", [False] * 6), ("on", [False, True, False, True, True, True])):
        run_dir = RunDir(tmp_path / wish)
        run_dir.root.mkdir()
        events = EventLog(run_dir.events_path)
        setup = prepare(parse_job(job_data(pictures, training={"torch_compile": wish})))
        transformer = build_trainee(setup, RunContext(run_dir, tmp_path, events, lambda: False)).transformer
        events.close()
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        assert [block._compiled_call_impl is not None for block in blocks] == expected  # what torch's nn.Module.compile sets


def test_auto_compiles_long_runs_alone_and_the_same_way_however_often_it_is_asked(pictures):
    setup = prepare(parse_job(job_data(pictures, training={"torch_compile": "auto"})))
    assert not setup.compiles
    assert replace(setup, num_steps=10_000_000).compiles
    assert not prepare(parse_job(job_data(pictures))).compiles, "off is the default"


def test_without_a_compiler_on_is_an_error_with_the_mend_and_auto_leaves_it(pictures, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(JobError, match=r"training\.torch_compile is 'on', but .*no-such-compiler is not found: install"):
        prepare(parse_job(job_data(pictures, training={"torch_compile": "on"})))
    setup = prepare(parse_job(job_data(pictures, training={"torch_compile": "auto"})))
    assert not replace(setup, num_steps=10_000_000).compiles
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(compiling.sys, "platform", "win32")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(JobError, match="Visual Studio's Build Tools"):
        compiling.check_compiling("on", torch.device("cpu"))


def test_blocks_that_come_and_go_are_not_compiled(pictures):
    data = job_data(pictures, base={"blocks_to_swap": 2}, training={"gradient_checkpointing": True, "torch_compile": "on"})
    with pytest.raises(JobError, match=r"torch_compile 'on' does not go with base\.blocks_to_swap"):
        parse_job(data)
    data["training"]["torch_compile"] = "auto"
    assert not replace(prepare(parse_job(data)), num_steps=10_000_000).compiles


@pytest.mark.slow
def test_a_compiled_run_learns_the_same_says_so_and_resumes_to_the_same_bytes(tmp_path, pictures, cache):
    """With TREAD and recomputation; pictures before and after, which run as written. A minute or two of compiling."""
    parts = {
        "lora": {"lora_save_precision": "fp32"},
        "routes": [{"selection_ratio": 0.5, "start_layer_idx": 1, "end_layer_idx": -2}],
        "validation": {"num_validation_images": 1, "validation_num_inference_steps": 2},
    }
    jobs = {
        wish: parse_job(job_data(pictures, **parts, training={"torch_compile": wish, "gradient_checkpointing": True}))
        for wish in ("off", "on")
    }
    eager, straight = (run_in_process(jobs[wish], tmp_path / wish, cache) for wish in ("off", "on"))
    assert straight["losses"] == pytest.approx(eager["losses"], rel=1e-5)
    with pytest.raises(StopRequested):
        run_in_process(jobs["on"], tmp_path / "stopped", cache, stop_before=3)
    torch._dynamo.reset()
    resumed = run_in_process(jobs["on"], tmp_path / "stopped", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()
    run_dir = Path(straight["run_dir"])
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    told = [event["done"] for event in events if event["event"] == "phase" and event["phase"] == "compile"]
    assert told == [0, 1] and json.loads((run_dir / "manifest.json").read_text())["compiled"] is True


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["nf4-bnb", "int8-quanto", "int8-torchao"])
def test_a_quantised_base_is_compiled_to_the_same_losses(tmp_path, pictures, cache, precision):
    losses = []
    for wish in ("off", "on"):
        data = job_data(pictures, base={"base_model_precision": precision}, training={"torch_compile": wish})
        losses.append(run_in_process(parse_job(data), tmp_path / wish, cache)["losses"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
