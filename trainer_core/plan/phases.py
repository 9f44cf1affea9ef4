"""What a run will need in each of its phases, from the job and the headers of its files; nothing is loaded.

Weights are counted, layer by layer, in the bytes that their precision gives them; the work on them is rehearsed
(`rehearse.py`). Host memory is what the process owns (anonymous); a base that stays as it is in the file, on the CPU, is
`mapped`: the system can drop it and read it again, at a price in time. Where there is a card, weights and work are there.

The floors are what Python with torch and the libraries holds before any work: measured on Linux without a card (0.50 GiB); with
one, CUDA adds to it on both sides, here by what NVIDIA's runtime commonly takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn
from torch.nn import Parameter
from transformers import CLIPTextModel, T5EncoderModel

from ..data.encode import CAPTIONS_AT_ONCE
from ..flux.dialects import open_clip, open_t5, open_vae
from ..flux.fill import nothing
from ..flux.load import FluxShape, empty_transformer
from ..flux.modulation import is_modulation
from ..flux.offload import waiting_layers
from ..flux.quantize import METHODS, UNQUANTISED, WHOLE, make_quantiser
from ..flux.text import UNQUANTISED_TEXT, clip_config, t5_config
from ..flux.vae import DOWNSCALE, FLUX_VAE, LATENT_CHANNELS, TINY_VAE
from ..optimizers import make_optimizer
from ..setup import Setup
from ..specs.optimizer import OptimizerSpec
from .activations import Growth, Pass, sampling_growth, training_growth
from .rehearse import rehearse

GIB = 1 << 30
HOST_FLOOR = {"cpu": GIB // 2, "cuda": 2 * GIB}
CARD_FLOOR = {"cpu": 0, "cuda": GIB // 2}
QUANTISING = 5.0  # quantising a layer takes so many times its bytes in the file: float32 copies and masks, measured on the CPU
GRADIENT = FLOAT32 = 4  # bytes a value


@dataclass(frozen=True)
class Phase:
    """Bytes at the peak of a phase. `mapped` is of the files, and can be dropped; `card` is 0 where there is none."""

    name: str
    host: int
    card: int
    mapped: int = 0


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's weights as they are kept: where the work is, and in host memory, of our own or of the file.
    `loading` is what a layer takes while it is read and quantised, `in_products` one brought back to floating numbers.
    """

    total: int
    loading: int
    in_products: int
    is_quantised: bool
    on_host: int = 0
    on_host_mapped: int = 0


def plan_phases(setup: Setup) -> tuple[Phase, ...]:
    """All phases, in their order."""
    return (*encoding_phases(setup), *transformer_phases(setup))


def encoding_phases(setup: Setup) -> tuple[Phase, ...]:
    """Pictures through the VAE, captions through CLIP and T5."""
    width, height = largest_picture(setup)
    vae = vae_skeleton(setup)
    pixels = torch.empty(1, 3, height, width, device="meta")
    pictures = rehearse(vae, lambda: _without_gradient(vae.encode, torch.empty(pixels.shape)))
    encoding = setup.encoding
    with torch.device("meta"):
        clip = CLIPTextModel(clip_config(open_clip(setup.files.clip_l)))
        t5 = T5EncoderModel(t5_config(open_t5(setup.files.t5)))
    clip_length = min(setup.flavour.clip_max_length, clip.config.max_position_embeddings)
    shares = (
        encoder_bytes(clip, encoding.clip_precision, encoding.dtype, CAPTIONS_AT_ONCE, clip_length),
        encoder_bytes(t5, encoding.t5_precision, encoding.dtype, CAPTIONS_AT_ONCE, setup.flavour.t5_max_length),
    )
    weights, work = zip(*shares, strict=True)
    in_all = max(map(sum, shares)) if setup.job.base.offload_during_startup else sum(weights) + max(work)
    return (
        _phase(setup, "encode pictures", _bytes(vae_skeleton(setup)), pictures.peak),
        _phase(setup, "encode captions", 0, in_all),
    )


def encoder_bytes(model: nn.Module, precision: str, dtype: torch.dtype, captions: int, length: int) -> tuple[int, int]:
    """Weights of a text encoder on the meta device, and what it takes to load it and to encode so many captions at once."""
    kept = kept_weights(model, precision, UNQUANTISED_TEXT.get(precision, ()), dtype)
    tokens = (captions, length)
    work = rehearse(nn.Module.to(model, dtype), lambda: _without_gradient(model, torch.zeros(tokens, dtype=torch.long)))
    return kept.total, max(work.peak + kept.in_products, kept.loading)


def transformer_phases(setup: Setup) -> tuple[Phase, ...]:
    """Loading, training, and the pictures of the run. Blocks that wait visit two at a time; what is offloaded of the
    activations is in host memory."""
    base, adapter = base_weights(setup), adapter_bytes(setup)
    one = largest_pass(setup)
    work, offloaded = training_work(setup, one), offloaded_bytes(setup, one)
    train = _phase(setup, "train", base.total + adapter, work - offloaded + base.in_products, base)
    phases = [
        _phase(setup, "load", base.total, base.loading, base),
        replace(train, host=train.host + offloaded),
    ]
    if setup.prompts:
        sampled = Pass(1, setup.sampler.width, setup.sampler.height, setup.flavour.t5_max_length)
        growth = sampling_growth(setup.shape, setup.job.lora, setup.dtype, sampled)
        vae, latent = vae_skeleton(setup), (1, LATENT_CHANNELS, sampled.height // DOWNSCALE, sampled.width // DOWNSCALE)
        decoding = rehearse(vae, lambda: _without_gradient(vae.decode, torch.empty(latent)))
        work = max(_all_blocks(growth, setup.shape), _bytes(vae_skeleton(setup)) + decoding.peak)
        phases.append(_phase(setup, "pictures", base.total + adapter, work + base.in_products, base))
    return tuple(phases)


def training_work(setup: Setup, one: Pass) -> int:
    """Bytes of activations and gradients at the peak of a step. What TREAD leaves out is not kept in the blocks of its span."""
    training, shape = setup.job.training, setup.shape
    gradients = GRADIENT * setup.num_parameters
    double, single = float(shape.num_double), float(shape.num_single)
    for span in setup.spans:
        saved = span.ratio * one.num_tokens / one.num_joint
        double -= saved * sum(span.first <= layer <= span.last for layer in range(shape.num_double))
        single -= saved * sum(
            span.first <= layer <= span.last for layer in range(shape.num_double, shape.num_double + shape.num_single)
        )
    share = 1 / training.gradient_checkpointing_interval if training.gradient_checkpointing else 0.0
    kept = least = 0
    for checkpointing, part in ((True, share), (False, 1 - share)):
        if part:
            growth = training_growth(shape, setup.job.lora, setup.dtype, one, checkpointing=checkpointing)
            kept += part * (double * growth.double.peak + single * growth.single.peak)
            least = max(least, growth.fixed.peak)
    is_first = training.gradient_accumulation_steps == 1  # else the gradients of the batches before are there from the start
    return int(least + (max(kept, gradients) if is_first else kept + gradients))


def offloaded_bytes(setup: Setup, one: Pass) -> int:
    """What blocks keep that waits in host memory: what goes into each, pictures and text."""
    if not setup.job.training.enable_activation_offloading:
        return 0
    blocks = (setup.shape.num_double + setup.shape.num_single) // setup.job.training.gradient_checkpointing_interval
    return blocks * one.batch * one.num_joint * setup.shape.width * setup.dtype.itemsize


def base_weights(setup: Setup) -> Weights:
    """The frozen transformer: what stays on the host is not quantised, and mapped where the file has the base's format."""
    base, shape = setup.job.base, setup.shape
    waiting = waiting_layers(shape, base.blocks_to_swap) if setup.device.type != "cpu" else nothing
    on_host = is_modulation if setup.modulation_on_host else nothing
    model = empty_transformer(shape)
    all_of_it = kept_weights(model, base.base_model_precision, UNQUANTISED, setup.dtype)
    resting = kept_weights(model, "no_change", (), setup.dtype, on_host).total
    here = kept_weights(
        model, base.base_model_precision, UNQUANTISED, setup.dtype, lambda name: not on_host(name) and not waiting(name)
    )
    swapped = kept_weights(
        model, base.base_model_precision, UNQUANTISED, setup.dtype, lambda name: waiting(name) and not on_host(name)
    )
    visiting = 2 * swapped.total // max(1, base.blocks_to_swap)
    return replace(all_of_it, total=here.total + visiting, on_host=swapped.total, on_host_mapped=resting)


def kept_weights(
    model: nn.Module,
    precision: str,
    unquantised: tuple[str, ...],
    dtype: torch.dtype,
    counts: Callable[[str], bool] = lambda name: True,
) -> Weights:
    """What the layers that count, of a model on the meta device, take once they are loaded."""
    quantiser, total, loading, in_products = make_quantiser(precision, torch.device("cpu"), unquantised), 0.0, 0, 0
    met: set[int] = set()  # T5's embedding has two names
    for name, module in model.named_modules():
        for leaf, parameter in module.named_parameters(recurse=False) if counts(name) else ():
            if id(parameter) in met:
                continue
            met.add(id(parameter))
            whole = parameter.numel() * dtype.itemsize
            if quantiser is not None and leaf == "weight" and quantiser.takes(name, module):
                total += parameter.numel() * METHODS[precision].bytes_per_weight
                loading, in_products = max(loading, int(QUANTISING * whole)), max(in_products, whole)
            else:
                total, loading = total + whole, max(loading, whole)
    return Weights(int(total), loading, in_products, precision not in WHOLE)


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
    cells = sum(len(s.views) * bucket.width * bucket.height // DOWNSCALE**2 for s in samples for bucket in s.shape)
    captions = len({caption for sample in samples for caption in sample.captions} | {*setup.prompts, ""})
    text = setup.flavour.t5_max_length * setup.shape.t5_width + setup.shape.clip_width
    return {"latents": FLOAT32 * LATENT_CHANNELS * cells, "captions": captions * text * setup.dtype.itemsize}


def largest_picture(setup: Setup) -> tuple[int, int]:
    """Width and height of the largest bucket, in pixels, of pictures and references."""
    largest = max((bucket for sample in (*setup.samples, *setup.eval_samples) for bucket in sample.shape), key=prod)
    return largest.width, largest.height


def largest_pass(setup: Setup) -> Pass:
    """The largest batch of training, references included."""
    largest = max((sample.shape for sample in (*setup.samples, *setup.eval_samples)), key=lambda shape: sum(map(prod, shape)))
    picture, reference = largest if len(largest) > 1 else (*largest, (0, 0))
    return Pass(setup.job.training.train_batch_size, *picture, setup.flavour.t5_max_length, tuple(reference))


def vae_skeleton(setup: Setup) -> AutoencoderKL | AutoencoderTiny:
    """The VAE on the meta device."""
    is_full = "decoder.conv_in.weight" in open_vae(setup.files.vae).entries
    with torch.device("meta"):
        return AutoencoderKL(**FLUX_VAE) if is_full else AutoencoderTiny(**TINY_VAE)


def _phase(setup: Setup, name: str, weights: int, work: int, base: Weights | None = None) -> Phase:
    """Where a phase's weights and work are; with the base, what of that is in host memory."""
    kind, on_host, mapped = setup.device.type, base.on_host if base else 0, base.on_host_mapped if base else 0
    if kind == "cuda":
        return Phase(name, HOST_FLOOR[kind] + on_host, CARD_FLOOR[kind] + weights + work, mapped)
    if base is not None and not base.is_quantised:
        return Phase(name, HOST_FLOOR[kind] + weights - base.total + on_host + work, 0, base.total + mapped)
    return Phase(name, HOST_FLOOR[kind] + weights + on_host + work, 0, mapped)


def _all_blocks(growth: Growth, shape: FluxShape) -> int:
    return growth.peak(shape.num_double, shape.num_single)


def _bytes(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _without_gradient(function, *arguments):
    with torch.no_grad():
        return function(*arguments)
