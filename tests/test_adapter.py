"""The adapter: nothing at its start, complete in its file, and the same change wherever the file is loaded."""

import json
from functools import cache

import pytest
import torch
from diffusers import FluxPipeline
from safetensors.torch import load_file, save_file

from support import job_data
from trainer_core.adapter.build import adapted_layers, add_adapter, exported_parts, remove_adapter
from trainer_core.adapter.factors import change, change_norm, change_size, kronecker_output
from trainer_core.adapter.lora_file import export_lora, inspect_lora, lora_metadata
from trainer_core.adapter.plan import AdapterPlan, given_module, plan_adapter
from trainer_core.adapter.verify import verify_lora
from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.load import empty_transformer, load_transformer, read_shape
from trainer_core.flux.predict import predict_velocity
from trainer_core.job_file import parse_job
from trainer_core.specs.adapter import LoraSpec

SHAPE = read_shape(PICO_FILES.transformer)
EMPTY = empty_transformer(SHAPE)


KINDS = {
    "lora": {"lora_rank": 4, "lora_alpha": 2.0, "rank_pattern": ("single 0: 8",)},
    "gaussian": {"lora_rank": 4, "lora_init_type": "gaussian"},
    "pissa": {"lora_rank": 4, "lora_alpha": 2.0, "lora_init_type": "pissa"},
    "olora": {"lora_rank": 4, "lora_alpha": 8.0, "lora_init_type": "olora"},
    "lokr": {"lora_type": "lokr"},
    "lokr of low rank": {"lora_type": "lokr", "lokr_full_matrix": False, "lora_rank": 4, "lora_alpha": 2.0},
    "loha": {"lora_type": "loha", "lora_rank": 4, "lora_alpha": 2.0, "rank_pattern": ("single 0: 8",)},
}
LAYER = "transformer_blocks.1.ff.net.2"


def base(dtype: torch.dtype = torch.float32):
    return load_transformer(PICO_FILES.transformer, dtype, torch.device("cpu"))


def plan_of(**fields) -> AdapterPlan:
    return plan_adapter(EMPTY, LoraSpec(**({"flux_lora_target": "all+ffs"} | fields)))


def velocity(transformer) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    text, pooled = torch.randn(1, 8, SHAPE.t5_width, generator=random), torch.randn(1, SHAPE.clip_width, generator=random)
    with torch.no_grad():
        x = torch.randn(1, 16, 8, 8, generator=random)
        return predict_velocity(transformer, x, torch.tensor([0.5]), text, pooled, torch.tensor([3.0]))


@cache
def untouched(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What the base without any adapter predicts."""
    return velocity(base(dtype))


def base_with(plan: AdapterPlan, seed: int = 0):
    transformer = base()
    add_adapter(transformer, plan, seed)
    return transformer


def moved(plan: AdapterPlan, dtype: torch.dtype = torch.float32):
    """An adapter as if it had been trained: no part is where it started."""
    transformer = base(dtype)
    random = torch.Generator().manual_seed(1)
    for parameter in add_adapter(transformer, plan, seed=0).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=random)
    return transformer


def write(path, plan: AdapterPlan, transformer, dtype: torch.dtype = torch.float32):
    job = parse_job(job_data(path.parent, lora={"lora_rank": 4}))
    export_lora(path, transformer, plan, dtype, lora_metadata(job, plan, FLAVOURS["pico"], "run-1", 7))
    return job


def merged(path):
    """The base with the changes of the file in its weights, by the formulas and not by PEFT."""
    transformer, tensors = base(), load_file(path)
    for name, module in transformer.named_modules():
        lora, lycoris = f"transformer.{name}.", f"lycoris_{name.replace('.', '_')}."
        if lora + "alpha" in tensors:
            down, up = tensors[lora + "lora_A.weight"], tensors[lora + "lora_B.weight"]
            module.weight.data += tensors[lora + "alpha"] / len(down) * up @ down
        elif lycoris + "hada_w1_a" in tensors:
            w1_a, w1_b, w2_a, w2_b = (tensors[lycoris + "hada_" + part] for part in ("w1_a", "w1_b", "w2_a", "w2_b"))
            module.weight.data += tensors[lycoris + "alpha"] / len(w1_b) * (w1_a @ w1_b) * (w2_a @ w2_b)
        elif lycoris + "lokr_w2" in tensors:
            module.weight.data += torch.kron(tensors[lycoris + "lokr_w1"], tensors[lycoris + "lokr_w2"])
        elif lycoris + "lokr_w1" in tensors:
            left, right = tensors[lycoris + "lokr_w2_a"], tensors[lycoris + "lokr_w2_b"]
            module.weight.data += (
                tensors[lycoris + "alpha"] / len(right) * torch.kron(tensors[lycoris + "lokr_w1"], left @ right)
            )
    return transformer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_new_adapter_changes_nothing_and_trains_only_itself_in_float32(kind, dtype):
    transformer, plan = base(dtype), plan_of(**KINDS[kind])
    parameters = add_adapter(transformer, plan, seed=0)
    assert torch.equal(velocity(transformer), untouched(dtype))
    assert all(parameter.dtype == torch.float32 for parameter in parameters.values())
    assert sum(parameter.numel() for parameter in parameters.values()) == plan.num_parameters
    assert len(parameters) == sum(len(module.shapes) for module in plan.modules)


@pytest.mark.parametrize("kind", KINDS)
def test_the_start_is_a_function_of_the_seed_and_leaves_the_global_state_alone(kind):
    plan, before = plan_of(**KINDS[kind]), torch.random.get_rng_state()
    first = base_with(plan)
    velocity(first.train())
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(7)
    again, other = base_with(plan), base_with(plan, seed=2)
    starts = [[p for p in transformer.parameters() if p.requires_grad] for transformer in (first, again, other)]
    assert all(torch.equal(one, two) for one, two in zip(starts[0], starts[1], strict=True))
    if kind != "olora":  # which has nothing to draw, but where a layer has fewer directions than the rank
        assert any(not torch.equal(one, two) for one, two in zip(starts[0], starts[2], strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_on_the_untouched_base_is_the_trained_model(kind, tmp_path):
    plan = plan_of(**KINDS[kind])
    trained = moved(plan)
    write(tmp_path / "adapter.safetensors", plan, trained)
    change_made = velocity(trained) - untouched()
    assert change_made.abs().max() > 1e-3
    torch.testing.assert_close(velocity(merged(tmp_path / "adapter.safetensors")), velocity(trained), atol=1e-5, rtol=1e-5)
    trained.disable_adapters()
    assert torch.equal(velocity(trained), untouched())
    trained.enable_adapters()
    assert torch.equal(velocity(trained) - untouched(), change_made)
    assert sum(p.requires_grad for p in trained.parameters()) == sum(len(module.shapes) for module in plan.modules)


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_a_little_training_from_the_bases_directions_survives_rounding(kind, tmp_path):
    """The start is a hundred times what was learned: rounded to bfloat16 whole, it would drown it."""
    plan = plan_of(**KINDS[kind])
    transformer = base()
    for parameter in add_adapter(transformer, plan, seed=0).values():
        parameter.data *= 1.01
    exact = {name: change("lora", parts, 1.0) for name, parts in exported_parts(transformer, plan).items()}
    write(tmp_path / "adapter.safetensors", plan, transformer, torch.bfloat16)
    tensors = load_file(tmp_path / "adapter.safetensors")
    for name, delta in exact.items():
        up, down = (tensors[f"transformer.{name}.lora_{side}.weight"].float() for side in "BA")
        assert (up @ down - delta).norm() < 0.01 * delta.norm()


def test_pissa_takes_the_largest_directions():
    plan = plan_of(lora_init_type="pissa", lora_rank=8, lora_alpha=4.0)
    parameters = add_adapter(base(), plan, seed=0)
    weight = base().get_submodule(LAYER).weight
    taken = 0.5 * parameters[LAYER + ".lora_B.default.weight"] @ parameters[LAYER + ".lora_A.default.weight"]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    best = (left[:, :8] * values[:8]) @ right[:8]
    assert (weight - taken).norm() < 1.02 * (weight - best).norm()


def test_olora_takes_what_peft_takes():
    from peft import LoraConfig

    theirs = base()
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=[LAYER], init_lora_weights="olora"))
    parameters = add_adapter(base(), plan_of(**KINDS["olora"]), seed=0)
    layer = theirs.get_submodule(LAYER)
    torch.testing.assert_close(
        parameters[LAYER + ".lora_A.default.weight"], layer.lora_A["default"].weight, atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(
        parameters[LAYER + ".lora_B.default.weight"], layer.lora_B["default"].weight, atol=1e-5, rtol=1e-4
    )


def test_a_rank_beyond_a_layers_directions_starts_fresh_there():
    plan = plan_of(lora_init_type="pissa", lora_rank=80)
    transformer = base()
    add_adapter(transformer, plan, seed=0)
    assert torch.equal(velocity(transformer), untouched())
    up, down = transformer.proj_out.lora_B["default"].weight, transformer.proj_out.lora_A["default"].weight
    assert up.shape == (64, 80) and not up[:, 64:].any() and down[64:].any()


def test_loftq_starts_nearer_to_the_whole_base_and_its_file_fits_it(tmp_path):
    """The base rounded to so few levels that it shows; the adapter starts from what that took."""
    whole, rounded = base(), base()
    spec = LoraSpec(flux_lora_target="all+ffs", lora_rank=32, lora_init_type="loftq")
    plan = plan_adapter(empty_transformer(SHAPE), spec, quantised=True)
    for name in plan.names:
        weight = rounded.get_submodule(name).weight.data
        step = weight.abs().amax() / 4
        weight.copy_((weight / step).round() * step)
    coarse = (velocity(rounded) - velocity(whole)).norm()
    add_adapter(rounded, plan, seed=0, unquantised=lambda name: whole.get_submodule(name).weight)
    assert (velocity(rounded) - velocity(whole)).norm() < 0.9 * coarse
    write(tmp_path / "adapter.safetensors", plan, rounded)
    assert torch.equal(velocity(merged(tmp_path / "adapter.safetensors")), velocity(whole)), "nothing was trained yet"


@pytest.mark.parametrize("kind", ["lora", "lokr", "lokr of low rank", "loha"])
def test_a_layer_runs_as_peft_runs_it(kind):
    transformer = moved(plan_of(**KINDS[kind]))
    layer, x = adapted_layers(transformer)[LAYER], torch.randn(2, 3, 1024, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = layer.base_layer(x) + x @ layer.get_delta_weight("default").T
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)


def test_a_lora_beside_bfloat16_is_right_to_its_rounding_and_keeps_no_float32_copy_of_what_goes_through():
    layer = adapted_layers(moved(plan_of(**KINDS["lora"]), torch.bfloat16))[LAYER]
    x = torch.randn(2, 64, 1024, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    assert all(tensor.numel() < x.numel() for tensor in kept if tensor.dtype == torch.float32)
    with torch.no_grad():
        expected = x.float() @ (layer.base_layer.weight.float() + layer.get_delta_weight("default")).T + layer.base_layer.bias
        difference = (output.float() - expected).norm() / expected.norm()
    assert difference < 2**-8, "as far as one rounding to bfloat16"
    output.sum().backward()
    assert {part["default"].weight.grad.dtype for part in (layer.lora_A, layer.lora_B)} == {torch.float32}


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_an_adapter_goes_without_a_trace_and_another_one_can_follow(kind):
    transformer = base()
    for _ in range(2):
        parameters = add_adapter(transformer, plan_of(**KINDS[kind]), seed=0).values()
        for parameter in parameters:
            parameter.data += 0.1
        assert not torch.equal(velocity(transformer), untouched())
        remove_adapter(transformer)
        assert torch.equal(velocity(transformer), untouched())


@pytest.mark.parametrize("first", [{"w1": (4, 2)}, {"w1_a": (4, 3), "w1_b": (3, 2)}])
@pytest.mark.parametrize("second", [{"w2": (8, 5)}, {"w2_a": (8, 3), "w2_b": (3, 5)}])
def test_a_kronecker_product_is_applied_by_its_factors(first, second):
    random, shapes = torch.Generator().manual_seed(0), first | second
    parts = {part: torch.randn(shape, generator=random) for part, shape in shapes.items()}
    x, whole = torch.randn(2, 7, 10, generator=random), change("lokr", parts, 1.0)
    assert whole.shape == change_size("lokr", shapes) == (32, 10)
    torch.testing.assert_close(kronecker_output(x, parts), x @ whole.T, atol=1e-5, rtol=1e-4)
    assert change_norm("lokr", parts, 2.0) == pytest.approx(2 * whole.norm().item(), rel=1e-5)


def test_parts_that_exist_already_are_taken_over():
    random = torch.Generator().manual_seed(3)
    name, extra = "transformer_blocks.0.attn.to_q", "context_embedder"
    width = base().get_submodule(extra).in_features
    initial = {
        name: {"down": torch.randn(6, 256, generator=random), "up": torch.randn(256, 6, generator=random)},
        extra: {"down": torch.randn(2, width, generator=random), "up": torch.randn(256, 2, generator=random)},
    }
    given = {key: given_module(key, 3.0, parts) for key, parts in initial.items()}
    plan = plan_adapter(empty_transformer(SHAPE), LoraSpec(lora_rank=4), given)
    transformer = base()
    parameters = add_adapter(transformer, plan, 0, initial)
    ranks = {module.name: (module.rank, module.strength) for module in plan.modules}
    assert ranks[name] == (6, 0.5) and ranks[extra] == (2, 1.5) and ranks["transformer_blocks.1.attn.to_q"] == (4, 1.0)
    assert torch.equal(parameters[name + ".lora_A.default.weight"], initial[name]["down"])
    x = torch.randn(1, width, generator=random)
    layer = transformer.get_submodule(extra)
    with torch.no_grad():
        change_made = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(change_made, 1.5 * x @ initial[extra]["down"].T @ initial[extra]["up"].T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_complete_and_verified(kind, tmp_path):
    plan = plan_of(**KINDS[kind])
    write(tmp_path / "adapter.safetensors", plan, moved(plan), torch.bfloat16)
    verification = verify_lora(tmp_path / "adapter.safetensors", SHAPE, plan)
    assert verification.complete, verification.problems
    assert (
        verification.keys
        == sum(len(module.shapes) + 1 for module in plan.modules)
        == len(load_file(tmp_path / "adapter.safetensors"))
    )
    assert verification.strengths == tuple(sorted({module.strength for module in plan.modules}))
    write(tmp_path / "start.safetensors", plan, base_with(plan))
    assert "changes nothing" in "".join(verify_lora(tmp_path / "start.safetensors", SHAPE, plan).problems)


@pytest.mark.parametrize("kind", ["lora", "pissa"])
def test_diffusers_loads_the_file_to_the_same_change(kind, tmp_path):
    path, plan = tmp_path / "lora.safetensors", plan_of(**KINDS[kind])
    trained = moved(plan)
    write(path, plan, trained)
    fresh = base()
    state, alphas = FluxPipeline.lora_state_dict(str(path.parent), weight_name=path.name, return_alphas=True)
    FluxPipeline.load_lora_into_transformer(state, alphas, fresh)
    torch.testing.assert_close(velocity(fresh), velocity(trained), atol=1e-5, rtol=1e-5)


def test_damage_of_every_kind_is_found(tmp_path):
    path, plan = tmp_path / "lora.safetensors", plan_of(lora_rank=4, lora_alpha=2.0)
    write(path, plan, moved(plan))
    tensors = load_file(path)
    key = "transformer.transformer_blocks.0.attn.to_q"

    def problems(**changes) -> str:
        damaged = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
        save_file(damaged, tmp_path / "damaged.safetensors")
        verification = verify_lora(tmp_path / "damaged.safetensors", SHAPE, plan)
        assert not verification.complete
        return "\n".join(verification.problems)

    assert "no such layer" in problems(**{"base_model.model.x.lora_A.weight": torch.ones(4, 4)})
    assert "no such layer" in problems(**{"transformer.transformer_blocks.9.attn.to_q.alpha": torch.tensor(2.0)})
    assert "not trained with it" in problems(**{"transformer.x_embedder.alpha": torch.tensor(2.0)})
    assert "not finite" in problems(**{key + ".lora_A.weight": torch.full((4, 256), float("nan"))})
    assert "trained was 2.0" in problems(**{key + ".alpha": torch.tensor(4.0)})
    assert "the layer needs (4, 256)" in problems(**{key + ".lora_A.weight": torch.ones(4, 128)})
    assert "the file lacks it" in problems(**{key + ".alpha": None})
    zeros = {name: torch.zeros_like(tensor) for name, tensor in tensors.items() if "lora_B" in name}
    assert "changes nothing" in problems(**zeros)


@pytest.mark.parametrize(
    ("kind", "ranks", "alphas"),
    [
        ("lora", [4, 8], [2.0]),
        ("pissa", [8], [4.0]),
        ("lokr", [0], [1.0]),
        ("lokr of low rank", [4], [2.0]),
        ("loha", [4, 8], [2.0]),
    ],
)
def test_inspect_tells_kind_rank_alpha_targets_norms_and_metadata(kind, ranks, alphas, tmp_path):
    path, plan = tmp_path / "lora.safetensors", plan_of(**KINDS[kind])
    job = write(path, plan, moved(plan))
    report = inspect_lora(path)
    assert (report["kind"], report["ranks"], report["alphas"], report["dtypes"]) == (plan.kind, ranks, alphas, ["float32"])
    assert report["targets"]["single_transformer_blocks.*.proj_mlp"] == 4
    assert report["targets"]["transformer_blocks.*.attn.to_out.0"] == 2
    assert report["modules"] == len(plan.modules)
    assert report["parameters"] == sum(module.num_parameters for module in plan.exported)
    difference = merged(path).get_submodule(LAYER).weight - base().get_submodule(LAYER).weight
    assert report["norms"][LAYER] == pytest.approx(difference.norm().item(), rel=1e-4)
    assert report["norms"][report["strongest"][0]] == max(report["norms"].values())
    assert report["metadata"]["flux_lora.run_id"] == "run-1"
    assert report["metadata"]["modelspec.architecture"] == "flux-1-pico/lora"
    assert parse_job(json.loads(report["metadata"]["flux_lora.job"])) == job


def test_the_same_adapter_gives_the_same_bytes(tmp_path):
    plan = plan_of(**KINDS["lokr"])
    for name in ("first", "second"):
        write(tmp_path / name, plan, moved(plan))
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
