"""Each optimiser: it trains, it resumes exactly, it says what it does not take, and it is refused where it cannot work."""

import json
import re
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import Parameter

from support import ROOT, job_data, make_pictures, run_in_process
from trainer_core.adamw_bf16 import AdamWBF16, round_at_random
from trainer_core.checkpoint import restore_latest, save_checkpoint
from trainer_core.errors import JobError, StopRequested
from trainer_core.history import History
from trainer_core.job_file import parse_job
from trainer_core.optimizer_check import check_optimizer
from trainer_core.optimizers import OPTIMIZERS, averaged, effective, make_optimizer
from trainer_core.rng import generator
from trainer_core.run_dir import RunDir
from trainer_core.saved import list_checkpoints
from trainer_core.setup import prepare
from trainer_core.specs.optimizer import OptimizerName, OptimizerSpec

# Paged states on the CPU are plain ones, with the same numbers; and the decay of one test is high on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not", "ignore:You are using weight_decay up to")

CPU = torch.device("cpu")
ALL = list(OPTIMIZERS)
AVERAGING = [name for name, choice in OPTIMIZERS.items() if choice.averages]


def spec_of(name: str, **fields: object) -> OptimizerSpec:
    """A spec that a dozen steps show something with: 8-bit states from the first number on, prodigy near its distance."""
    lion, config = "lion" in name, ""
    if name.startswith("bnb"):
        config = "min_8bit_size=16"
    if name == "prodigy":
        config = "d0=1e-3"
    rate = 1.0 if name == "prodigy" else 1e-3 if lion else 3e-3
    return OptimizerSpec(**{"optimizer": name, "learning_rate": rate, "optimizer_config": config} | fields)


def skip_where_refused(spec: OptimizerSpec) -> None:
    try:
        check_optimizer(spec, CPU)
    except JobError as error:
        assert "choose" in str(error), "a refusal says what to take instead"
        pytest.skip(str(error))


# --- whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory, cache):
    """(job, result, folder) of a straight run of each optimiser, made when first asked for."""
    folder = tmp_path_factory.mktemp("optimisers")
    few = make_pictures(folder / "pictures", 2)
    made = {}

    def run(name: str) -> tuple:
        if name not in made:
            spec = spec_of(name)
            skip_where_refused(spec)
            samples = {"num_validation_images": 1, "validation_num_inference_steps": 1, "validation_step_interval": 4}
            data = job_data(
                few,
                lora={"lora_rank": 8, "lora_save_precision": "fp32"},
                optimizer=spec.model_dump(),
                flow={"flow_custom_timesteps": [0.5], "caption_dropout_probability": 0.0},
                validation=samples if name in AVERAGING else {},
                training={"max_train_steps": 12, "checkpoint_step_interval": 0},
            )
            job = parse_job(data)
            made[name] = (job, run_in_process(job, folder / "straight", cache), folder)
        return made[name]

    return run


@pytest.mark.parametrize("name", ALL)
def test_it_trains(runs, name):
    _, result, _ = runs(name)
    losses = result["losses"]
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])


@pytest.mark.parametrize("name", ALL)
def test_a_resumed_run_ends_with_the_same_bytes(runs, cache, name):
    job, straight, folder = runs(name)
    with pytest.raises(StopRequested):
        run_in_process(job, folder / "resumed", cache, stop_before=5)
    resumed = run_in_process(job, folder / "resumed", cache)
    assert resumed["losses"] == straight["losses"]
    assert Path(resumed["lora"]).read_bytes() == Path(straight["lora"]).read_bytes()


@pytest.mark.parametrize("name", ["adamw", *AVERAGING])
def test_the_lora_has_the_average_and_the_checkpoint_what_was_trained(runs, name):
    _, result, _ = runs(name)
    checkpoint = list_checkpoints(RunDir(Path(result["run_dir"])).checkpoints_dir)[0]
    trained = sorted(tensor.norm().item() for tensor in load_file(checkpoint / "adapter.safetensors").values())
    saved = sorted(tensor.norm().item() for key, tensor in load_file(result["lora"]).items() if "lora_" in key)
    assert len(saved) == len(trained) and (saved == trained) == (name not in AVERAGING)


def test_the_manifest_says_what_is_really_used(runs):
    _, result, _ = runs("adamw_bf16")
    manifest = json.loads(RunDir(Path(result["run_dir"])).manifest_path.read_text())
    assert manifest["optimizer"] == {
        "name": "adamw_bf16",
        "class": "adamw_bf16.AdamWBF16",
        "learning_rate": 3e-3,
        "arguments": {"betas": [0.9, 0.999], "weight_decay": 0.01, "eps": 1e-06},
    }


# --- state


def parameters_of(seed: int, device: str = "cpu") -> dict[str, Parameter]:
    """One large enough for 8-bit states and for paged memory, one small, and one that begins at zero."""
    random = torch.Generator().manual_seed(seed)
    shapes = {"matrix": (512, 256), "small": (4, 3), "zero": (64, 8)}
    values = {name: torch.randn(shape, generator=random) * (name != "zero") for name, shape in shapes.items()}
    return {name: Parameter(value.to(device)) for name, value in values.items()}


def take_steps(parameters: dict[str, Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        for number, parameter in enumerate(parameters.values()):
            gradient = torch.randn(parameter.shape, generator=generator(number, step, "gradient"))
            parameter.grad = gradient.to(parameter.device)
        optimizer.step()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("averaging", [False, True], ids=["plainly", "averaged between"])
@pytest.mark.parametrize("name", ALL)
def test_the_state_goes_through_a_checkpoint_bit_for_bit(tmp_path, name, averaging, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA card")
    spec = spec_of(name)
    parameters = parameters_of(1, device)
    optimizer = make_optimizer(spec, parameters.values(), seed=3)
    take_steps(parameters, optimizer, 0, 5)
    if averaging:
        with averaged(optimizer):
            pass
    history = History(losses=[0.0] * 5)
    save_checkpoint(tmp_path, parameters, optimizer, None, history, lambda folder: None, keep=1)
    again = parameters_of(2, device)
    restored = make_optimizer(spec, again.values(), seed=3)
    assert restore_latest(tmp_path, again, restored, None) == history
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups + restored.param_groups]
    assert groups[0] == groups[1]
    for (parameter, state), (other, copy) in zip(optimizer.state.items(), restored.state.items(), strict=True):
        assert torch.equal(parameter, other) and state.keys() == copy.keys()
        for entry, value in state.items():
            assert type(value) is type(copy[entry]), entry
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.device) == (copy[entry].dtype, copy[entry].device), entry
                assert torch.equal(value, copy[entry]), entry
            else:
                assert value == copy[entry], entry
    take_steps(parameters, optimizer, 5, 8)
    take_steps(again, restored, 5, 8)
    assert all(torch.equal(parameters[key], again[key]) for key in parameters)


@pytest.mark.parametrize(("name", "dtype"), [("adamw_bf16", torch.bfloat16), ("bnb-adamw8bit", torch.uint8)])
def test_short_states_are_short(name, dtype):
    parameters = parameters_of(1)
    optimizer = make_optimizer(spec_of(name), parameters.values(), seed=0)
    take_steps(parameters, optimizer, 0, 1)
    large = [
        value.dtype for value in optimizer.state[parameters["matrix"]].values() if getattr(value, "shape", 0) == (512, 256)
    ]
    assert large == [dtype, dtype]


@pytest.mark.parametrize("name", ALL)
def test_averaging_shows_other_weights_and_gives_back_the_same(name):
    parameters = parameters_of(1)
    optimizer = make_optimizer(spec_of(name), parameters.values(), seed=0)
    take_steps(parameters, optimizer, 0, 5)
    before = parameters["matrix"].detach().clone()
    with pytest.raises(KeyboardInterrupt), averaged(optimizer):
        assert torch.equal(parameters["matrix"], before) == (name not in AVERAGING)
        raise KeyboardInterrupt
    assert torch.equal(parameters["matrix"], before)
    take_steps(parameters, optimizer, 5, 6)


# --- adamw_bf16


def test_rounding_at_random_is_exact_on_average_and_keeps_what_fits():
    third = torch.full((100_000,), 1 / 3)
    rounded = round_at_random(third, generator(0, 0, "test"))
    assert len(rounded.unique()) == 2 and rounded.double().mean().item() == pytest.approx(1 / 3, rel=1e-4)
    fits = torch.tensor([0.0, -1.5, 3e-30, 2.0**100]).bfloat16()
    assert torch.equal(round_at_random(fits.float(), generator(0, 0, "test")), fits)


def test_the_mean_square_follows_where_plain_rounding_stalls():
    """Gradients that shrink to a tenth: the mean square shall fall to a hundredth, a thousandth of itself a step."""
    ours, exact = Parameter(torch.zeros(4096)), Parameter(torch.zeros(4096))
    short, long = AdamWBF16([ours], lr=1e-3, seed=7), torch.optim.AdamW([exact], lr=1e-3, eps=1e-6)
    plain = torch.zeros(4096, dtype=torch.bfloat16)
    for step in range(1500):
        scale = 1.0 if step < 300 else 0.1
        gradient = scale * (1 + 0.3 * torch.randn(4096, generator=generator(1, step, "gradient")))
        ours.grad, exact.grad = gradient, gradient.clone()
        short.step()
        long.step()
        plain = (plain.float() * 0.999 + 0.001 * gradient * gradient).bfloat16()
    wanted = long.state[exact]["exp_avg_sq"].mean().item()
    assert short.state[ours]["exp_avg_sq"].float().mean().item() == pytest.approx(wanted, rel=0.02)
    assert short.state[ours]["exp_avg"].float().mean().item() == pytest.approx(
        long.state[exact]["exp_avg"].mean().item(), rel=0.02
    )
    assert plain.float().mean().item() > 1.5 * wanted
    assert ours.mean().item() == pytest.approx(exact.mean().item(), rel=0.02)


def test_the_rounding_depends_on_the_seed_and_not_on_the_global_state():
    def state(seed: int, global_seed: int) -> torch.Tensor:
        torch.manual_seed(global_seed)
        parameters = parameters_of(1)
        optimizer = AdamWBF16(parameters.values(), lr=1e-3, seed=seed)
        take_steps(parameters, optimizer, 0, 3)
        return optimizer.state[parameters["matrix"]]["exp_avg_sq"]

    assert torch.equal(state(1, 1), state(1, 2)) and not torch.equal(state(1, 1), state(2, 1))


# --- settings and preflight


def test_the_table_has_every_name_and_the_core_imports_no_package_that_only_one_of_them_needs():
    assert OPTIMIZERS.keys() == set(get_args(OptimizerName))
    optional = "|".join({choice.module.split(".")[0] for choice in OPTIMIZERS.values() if choice.package})
    for path in (ROOT / "trainer_core").rglob("*.py"):
        assert not re.search(rf"^(import|from) ({optional})\b", path.read_text(encoding="utf-8"), re.M), path


@pytest.mark.parametrize("name", ALL)
def test_an_unknown_argument_is_refused_with_those_that_are_known(name):
    with pytest.raises(JobError, match=rf"{name} takes no 'nonsense' here; it takes .*weight_decay"):
        check_optimizer(spec_of(name, optimizer_config="nonsense=1"), CPU)


@pytest.mark.parametrize("name", ALL)
def test_every_argument_reaches_the_optimiser(name):
    """Betas and decay from their fields, the rest from optimizer_config, each with a value that is not its default."""
    options = {key: value for key, value in OPTIMIZERS[name].options.items() if key != "weight_decay"}
    other = {key: not value if isinstance(value, bool) else value + 1 for key, value in options.items()}
    config = ",".join(f"{key}={value}" for key, value in other.items())
    spec = spec_of(name, adam_beta1=0.5, adam_beta2=0.25, adam_weight_decay=0.125, optimizer_config=config)
    optimizer = make_optimizer(spec, parameters_of(1).values(), seed=0)
    group = optimizer.param_groups[0]
    found = group | (vars(optimizer.args) if name.startswith("bnb") else {})
    assert {key: found[key] for key in other} == other
    assert group["weight_decay"] == 0.125 and 0.5 in (group.get("beta1"), *group.get("betas", ()))
    assert effective(spec)["arguments"].items() >= (other | {"weight_decay": 0.125}).items()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer_config": "eps"}, "'eps'; write key=value"),
        ({"optimizer_config": "eps=small"}, "eps is 'small'; it is a number"),
        ({"optimizer_config": "eps=nan"}, "eps is 'nan'; it is a number"),
        ({"optimizer_config": "eps=-1"}, "0 or above"),
        ({"optimizer_config": "eps=1,eps=2"}, "twice"),
        ({"optimizer_config": "amsgrad=1"}, "amsgrad is '1'; it is true or false"),
        ({"optimizer": "bnb-lion8bit", "optimizer_config": "min_8bit_size=1.5"}, "'1.5'; it is a whole number"),
        ({"optimizer": "optimi-lion", "optimizer_config": "eps=1e-6"}, "optimi-lion takes no 'eps'"),
        ({"optimizer_config": "weight_decay=0.1", "adam_weight_decay": 0.2}, "give one of them"),
        ({"optimizer": "prodigy"}, "finds its own rate.*set learning_rate to 1"),
        ({"optimizer": "prodigy", "learning_rate": 1.0, "optimizer_config": "d0=0"}, "refuses its settings: Invalid d0"),
        ({"optimizer": "prodigy", "learning_rate": 1.0, "lr_scheduler": "cosine"}, "its own course.*instead of 'cosine'"),
        ({"optimizer": "adamw_schedulefree", "lr_scheduler": "linear"}, "its own course.*instead of 'linear'"),
        ({"optimizer": "adamw_schedulefree", "adam_beta1": 0.0}, "adam_beta1, which is 0"),
        ({"optimizer": "bnb-adamw8bit-paged"}, "no card here; choose bnb-adamw8bit$"),
        ({"optimizer": "bnb-lion8bit-paged"}, "no card here; choose bnb-lion8bit$"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_the_mend(fields, message):
    with pytest.raises(JobError, match=message):
        check_optimizer(OptimizerSpec(**fields), CPU)


def test_prodigy_without_schedule_free_takes_any_course():
    spec = spec_of("prodigy", lr_scheduler="cosine", optimizer_config="use_schedulefree=false")
    check_optimizer(spec, CPU)


@pytest.mark.parametrize("name", [name for name, choice in OPTIMIZERS.items() if choice.package])
def test_a_package_that_is_not_there_is_named_with_the_command_that_gets_it(monkeypatch, name):
    monkeypatch.setitem(sys.modules, OPTIMIZERS[name].module, None)  # Python's own way to say that a module is not there
    with pytest.raises(JobError, match=rf"pip install {OPTIMIZERS[name].package}'"):
        check_optimizer(spec_of(name), CPU)


def test_the_optimiser_is_checked_before_the_files(pictures):
    data = job_data(pictures, optimizer={"optimizer": "prodigy", "learning_rate": 1e-4})
    with pytest.raises(JobError, match="set learning_rate to 1"):
        prepare(parse_job(data))
