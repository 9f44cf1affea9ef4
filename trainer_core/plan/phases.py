"""What a run will need in each of its phases, from the job and the headers of its files; nothing is loaded.

Weights are counted (`weights.py`), the work on them is rehearsed (`rehearse.py`). Host memory is what the process owns
(anonymous); what stays as it is in the file, on the CPU, is `mapped`: the system can drop it and read it again, at a price in
time. Where there is a card, weights and work are there. The same work is rehearsed once, however many settings are tried.

The floors are what Python with torch and the libraries holds before any work: measured on Linux without a card (0.50 GiB); with
one, CUDA adds to it on both sides, here by what NVIDIA's runtime commonly takes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.nn import Parameter
from transformers import CLIPTextModel, T5EncoderModel

from ..data.encode import CAPTIONS_AT_ONCE
from ..flux.dialects import open_clip, open_t5, open_vae
from ..flux.text import UNQUANTISED_TEXT, clip_config, t5_config
from ..flux.vae import DOWNSCALE, FLUX_VAE, LATENT_CHANNELS, TINY_VAE
from ..optimizers import make_optimizer
from ..setup import Setup
from ..specs.optimizer import OptimizerSpec
from ..validation.sample import prompts_at_once
from ..validation.shots import references_of
from .activations import Pass, sampling_growth, training_growth
from .rehearse import rehearse
from .weights import BaseWeights, Weights, base_weights, kept_weights

GIB = 1 << 30
HOST_FLOOR = {"cpu": GIB // 2, "cuda": 2 * GIB}
CARD_FLOOR = {"cpu": 0, "cuda": GIB // 2}
GRADIENT = FLOAT32 = 4  # bytes a value


@dataclass(frozen=True)
class Phase:
    """Bytes at the peak of a phase. `mapped` is of the files, and can be dropped; `card` is 0 where there is none."""

    name: str
    host: int
    card: int
    mapped: int = 0


def plan_phases(setup: Setup) -> tuple[Phase, ...]:
    """All phases, in their order."""
    return (*encoding_phases(setup), *transformer_phases(setup))


def encoding_phases(setup: Setup) -> tuple[Phase, ...]:
    """Pictures through the VAE, captions through CLIP and T5."""
    width, height = largest_picture(setup)
    at_once = setup.job.base.vae_batch_size
    vae, pictures = vae_cost(setup.files.vae, (at_once, 3, height, width), decoding=False)
    encoding = setup.encoding
    clip_length = min(setup.flavour.clip_max_length, clip_config(open_clip(setup.files.clip_l)).max_position_embeddings)
    shares = (
        clip_bytes(setup.files.clip_l, encoding.clip_precision, encoding.dtype, clip_length),
        t5_bytes(setup.files.t5, encoding.t5_precision, encoding.dtype, setup.flavour.t5_max_length),
    )
    weights, work = zip(*shares, strict=True)
    in_all = max(map(sum, shares)) if setup.job.base.offload_during_startup else sum(weights) + max(work)
    return (_phase(setup, "encode pictures", vae, pictures), _phase(setup, "encode captions", 0, in_all))


@lru_cache(maxsize=32)
def clip_bytes(path: Path, precision: str, dtype: torch.dtype, length: int) -> tuple[int, int]:
    """Weights and work of CLIP, captions of so many tokens."""
    with torch.device("meta"):
        model = CLIPTextModel(clip_config(open_clip(path)))
    return encoder_bytes(model, precision, dtype, CAPTIONS_AT_ONCE, length)


@lru_cache(maxsize=32)
def t5_bytes(path: Path, precision: str, dtype: torch.dtype, length: int) -> tuple[int, int]:
    """Weights and work of T5, captions of so many tokens."""
    with torch.device("meta"):
        model = T5EncoderModel(t5_config(open_t5(path)))
    return encoder_bytes(model, precision, dtype, CAPTIONS_AT_ONCE, length)


def encoder_bytes(model: nn.Module, precision: str, dtype: torch.dtype, captions: int, length: int) -> tuple[int, int]:
    """Weights of a text encoder on the meta device, and what it takes to load it and to encode so many captions at once."""
    kept = kept_weights(model, precision, UNQUANTISED_TEXT.get(precision, ()), dtype)

    @torch.no_grad()
    def encode() -> None:
        model(torch.zeros(captions, length, dtype=torch.long))

    work = rehearse(nn.Module.to(model, dtype), encode)
    return kept.own, max(work.peak + kept.in_products, kept.loading)


@lru_cache(maxsize=32)
def vae_cost(path: Path, size: tuple[int, ...], *, decoding: bool) -> tuple[int, int]:
    """Bytes of the VAE's weights, and of the work on pictures, or latents, of this size."""
    with torch.device("meta"):
        is_full = "decoder.conv_in.weight" in open_vae(path).entries
        vae = AutoencoderKL(**FLUX_VAE) if is_full else AutoencoderTiny(**TINY_VAE)
    weights = sum(parameter.numel() * parameter.element_size() for parameter in vae.parameters())

    @torch.no_grad()
    def work() -> None:
        (vae.decode if decoding else vae.encode)(torch.empty(size))

    return weights, rehearse(vae, work).peak


def transformer_phases(setup: Setup) -> tuple[Phase, ...]:
    """Loading, training, and the pictures of the run; what is offloaded of the activations is in host memory."""
    base, adapter, one = base_weights(setup), adapter_bytes(setup), largest_pass(setup)
    work, offloaded = training_work(setup, one), offloaded_bytes(setup, one)
    train = _phase(setup, "train", adapter, work - offloaded + base.here.in_products, base)
    phases = [_phase(setup, "load", 0, base.here.loading, base), replace(train, host=train.host + offloaded)]
    if setup.shots:
        phases.append(_phase(setup, "pictures", adapter, sampling_work(setup) + base.here.in_products, base))
    return tuple(phases)


def sampling_work(setup: Setup) -> int:
    """Bytes that the run's pictures take: as many prompts at once as the sampler takes, or the VAE with one of them."""
    one = sampling_pass(setup)
    growth = sampling_growth(setup.shape, setup.job.lora, setup.dtype, one)
    latent = (1, LATENT_CHANNELS, one.height // DOWNSCALE, one.width // DOWNSCALE)
    decoding = vae_cost(setup.files.vae, latent, decoding=True)
    return max(growth.peak(setup.shape.num_double, setup.shape.num_single), sum(decoding))


def sampling_pass(setup: Setup) -> Pass:
    """The largest batch of the sampler, references included."""
    sampler, largest = setup.sampler, max(setup.shots, key=lambda shot: shot.num_tokens)
    copies = 2 if sampler.has_cfg and sampler.cfg_passes != "two" else 1
    batch = min(prompts_at_once(sampler, largest.num_tokens), len(setup.shots)) * copies
    reference = tuple(largest.reference.bucket) if largest.reference else (0, 0)
    return Pass(batch, *largest.canvas[:2], setup.flavour.t5_max_length, reference)


def training_work(setup: Setup, one: Pass) -> int:
    """Bytes of activations and gradients at the peak of a step. What TREAD leaves out is not kept in the blocks of its span."""
    gradients, recomputed = GRADIENT * setup.num_parameters, frozenset(setup.recomputed_layers)
    kept, least, num_layers = 0.0, 0, setup.shape.num_double + setup.shape.num_single
    for checkpointing in (True, False):
        layers = [layer for layer in range(num_layers) if (layer in recomputed) == checkpointing]
        if layers:
            growth = training_growth(setup.shape, setup.job.lora, setup.dtype, one, checkpointing=checkpointing)
            blocks = {True: growth.double.peak, False: growth.single.peak}
            kept += sum(blocks[layer < setup.shape.num_double] * _kept_share(setup, one, layer) for layer in layers)
            least = max(least, growth.fixed.peak)
    is_first = setup.job.training.gradient_accumulation_steps == 1  # else those of the batches before are there from the start
    return int(least + (max(kept, gradients) if is_first else kept + gradients))


def _kept_share(setup: Setup, one: Pass, layer: int) -> float:
    """Of its tokens that a block sees: those that TREAD leaves out of it are not kept there."""
    return 1 - sum(span.ratio * one.num_tokens / one.num_joint for span in setup.spans if span.first <= layer <= span.last)


def offloaded_bytes(setup: Setup, one: Pass) -> int:
    """What blocks keep that waits in host memory: what goes into each, pictures and text."""
    if not setup.job.training.enable_activation_offloading:
        return 0
    return len(setup.recomputed_layers) * one.batch * one.num_joint * setup.shape.width * setup.dtype.itemsize


def adapter_bytes(setup: Setup) -> int:
    """Weights, optimiser states, running average and remembered start of the adapter."""
    copies = 1 + setup.job.training.use_ema + (setup.adapter.init in ("olora", "pissa", "loftq"))
    return int(setup.num_parameters * (copies * FLOAT32 + state_bytes(setup.job.optimizer)))


def state_bytes(spec: OptimizerSpec) -> float:
    """Bytes of state for each trained value, seen on a small matrix; a paged optimiser's states count as if they stayed."""
    spec = spec.model_copy(update={"optimizer": spec.optimizer.removesuffix("-paged")})
    matrix = Parameter(torch.zeros(256, 256))
    optimizer = make_optimizer(spec, [matrix], 0)
    matrix.grad = torch.full_like(matrix, 1e-3)
    optimizer.step()
    tensors = [value for value in optimizer.state[matrix].values() if isinstance(value, torch.Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / matrix.numel()


def disk_bytes(setup: Setup) -> Mapping[str, int]:
    """What the caches will hold: latents in float32, captions in the encoders' format; a prompt is a caption too."""
    samples = (*setup.samples, *setup.eval_samples)
    cells = sum(len(s.views) * prod(bucket) // DOWNSCALE**2 for s in samples for bucket in s.shape)
    cells += sum(prod(reference.bucket) // DOWNSCALE**2 for reference in references_of(setup.shots))
    captions = len({caption for s in samples for caption in s.captions} | {shot.prompt for shot in setup.shots} | {""})
    text = setup.flavour.t5_max_length * setup.shape.t5_width + setup.shape.clip_width
    return {"latents": FLOAT32 * LATENT_CHANNELS * cells, "captions": captions * text * setup.dtype.itemsize}


def largest_picture(setup: Setup) -> tuple[int, int]:
    """Width and height of the largest bucket, in pixels, of pictures and references."""
    trained = (bucket for sample in (*setup.samples, *setup.eval_samples) for bucket in sample.shape)
    largest = max((*trained, *(reference.bucket for reference in references_of(setup.shots))), key=prod)
    return largest.width, largest.height


def largest_pass(setup: Setup) -> Pass:
    """The largest batch of training, references included."""
    largest = max((sample.shape for sample in (*setup.samples, *setup.eval_samples)), key=lambda shape: sum(map(prod, shape)))
    picture, reference = largest if len(largest) > 1 else (*largest, (0, 0))
    return Pass(setup.job.training.train_batch_size, *picture, setup.flavour.t5_max_length, tuple(reference))


def _phase(setup: Setup, name: str, weights: int, work: int, base: BaseWeights | None = None) -> Phase:
    """Where a phase's weights and work are, beside those of the base."""
    kind, base = setup.device.type, base or BaseWeights(Weights(), Weights())
    here = weights + base.here.own + work
    if kind == "cuda":
        return Phase(name, HOST_FLOOR[kind] + base.on_host.own, CARD_FLOOR[kind] + here, base.on_host.mapped)
    return Phase(name, HOST_FLOOR[kind] + here + base.on_host.own, 0, base.here.mapped + base.on_host.mapped)
