"""The trainee: the frozen base with the adapter on it, its optimiser, and how far they have come."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from diffusers import FluxTransformer2DModel
from torch.nn import Parameter

from .adapter.assistant import Assistant, add_assistant
from .adapter.build import add_adapter
from .checkpoint import restore_latest
from .context import RunContext
from .ema import Ema
from .errors import JobError
from .events import EVENTS_VERSION
from .file_names import expanded
from .flux.compiling import compile_blocks
from .flux.eight_bit import base_quantiser
from .flux.fill import Visit, nothing, unseen
from .flux.load import FluxWeights, by_block, load_transformer, open_weights
from .flux.modulation import is_modulation, keep_on_host
from .flux.offload import let_blocks_wait, waiting_layers
from .flux.quantize import WHOLE
from .flux.recompute import recompute_layers
from .flux.routing import TokenRouter
from .flux.shard import check_sharing, share_out, stays_until_shared
from .history import History
from .modelspec import started_on
from .optimizers import averaged, make_optimizer
from .setup import Setup
from .specs.base import BaseModelSpec


@dataclass(frozen=True)
class Trainee:
    """What training changes, the routes that it takes, and what it has measured so far."""

    transformer: FluxTransformer2DModel
    parameters: dict[str, Parameter]
    optimizer: torch.optim.Optimizer
    router: TokenRouter
    ema: Ema | None
    assistant: Assistant | None
    history: History

    @contextmanager
    def as_used(self, *, ema: bool = False) -> Iterator[None]:
        """In here the adapter holds what is pictured, judged and exported: the running average if that is wanted, else the
        average that a schedule-free optimiser keeps, else what is trained."""
        assert self.ema is not None or not ema, "there is no running average"
        with self.ema.applied() if self.ema is not None and ema else averaged(self.optimizer):
            yield

    def assisted(self, strength: float) -> AbstractContextManager[None]:
        """In here the assistant LoRA, if there is one, works at this strength."""
        return nullcontext() if self.assistant is None else self.assistant.at(strength)


def load_base(setup: Setup, weights: FluxWeights, visit: Visit = unseen, *, shared_out: bool = False) -> FluxTransformer2DModel:
    """The frozen base in the precision that the job asks for, each layer where it belongs, or still in host memory where it is
    to be shared out. `visit` is told of each tensor."""
    base = setup.job.base
    quantiser = base_quantiser(base, quantised_on(base.quantize_via, setup.device))
    on_host = is_modulation if setup.modulation_on_host else nothing
    waits = stays_until_shared if shared_out else waiting_layers(setup.shape, base.blocks_to_swap)
    transformer = load_transformer(weights, setup.dtype, setup.device, quantiser, on_host, waits, visit)
    if setup.modulation_on_host:
        keep_on_host(transformer, setup.device)
    return transformer


def loading_phase(base: BaseModelSpec) -> str:
    """What loading the base is called in the events."""
    return "load" if base.base_model_precision in WHOLE else "quantise"


def quantised_on(quantize_via: str, device: torch.device) -> torch.device:
    """Where each layer is quantised."""
    return torch.device("cpu") if quantize_via == "cpu" else device


def make_trainable(
    setup: Setup, transformer: FluxTransformer2DModel, weights: FluxWeights, visit: Visit = unseen
) -> dict[str, Parameter]:
    """Put the adapter on the base, and on each block what saves memory; the trained parameters by name."""
    training, base = setup.job.training, setup.job.base
    parameters = add_adapter(
        transformer, setup.adapter, training.seed, setup.initial, lambda layer: weights.read(f"{layer}.weight"), visit
    )
    if training.gradient_checkpointing:
        recompute_layers(transformer, setup.recomputed_layers, offload=training.enable_activation_offloading)
    if base.blocks_to_swap:
        let_blocks_wait(transformer, base.blocks_to_swap, setup.device)
    return parameters


def build_trainee(setup: Setup, context: RunContext) -> Trainee:
    """The frozen base with the adapter on it and the optimiser, as new or as the newest checkpoint left them."""
    training = setup.job.training
    progress, num_blocks = context.stoppable(loading_phase(setup.job.base)), setup.shape.num_double + setup.shape.num_single
    weights = open_weights(setup.files.transformer)
    in_step = context.group.in_step
    if in_step:
        check_sharing(setup.job.base)
        if training.torch_compile == "on":
            raise JobError(
                "training.torch_compile 'on' and a base that is shared out (FSDP) exclude each other; set it to 'off'"
            )
    transformer = load_base(setup, weights, by_block(setup.shape, progress), shared_out=in_step)
    context.stop_if_wanted()
    helper = setup.job.base.assistant_lora_path
    assistant = add_assistant(transformer, expanded(helper), setup.shape) if helper else None
    parameters = make_trainable(setup, transformer, weights, lambda layer: context.stop_if_wanted())
    if in_step:
        share_out(transformer, parameters.values())
    optimizer = make_optimizer(setup.job.optimizer, parameters.values(), training.seed)
    ema = Ema(parameters, training.ema_decay, training.ema_update_interval) if training.use_ema else None
    with context.group.one_after_the_first():  # who finds a damaged checkpoint sets it aside
        history = restore_latest(context.run_dir.checkpoints_dir, parameters, optimizer, ema)
    history.started = history.started or started_on(context.run_dir)
    context.group.check_alike("what they start from", [torch.tensor([history.step]), *parameters.values()])
    if history.step > setup.num_steps:
        raise JobError(f"{history.step} steps are trained already, the job has {setup.num_steps}; give it at least as many")
    progress(num_blocks, num_blocks)
    context.events.emit("adapter", modules=len(setup.modules), parameters=setup.num_parameters)
    context.events.emit(
        "started",
        version=EVENTS_VERSION,
        run_id=context.run_dir.run_id,
        pid=os.getpid(),
        resumed_from=history.step,
        steps=setup.num_steps,
    )
    router = TokenRouter(transformer, setup.spans)
    if setup.compiles and not in_step:
        compile_blocks(transformer, setup.spans)
    return Trainee(transformer, parameters, optimizer, router, ema, assistant, history)
