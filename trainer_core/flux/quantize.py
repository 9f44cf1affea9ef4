"""The frozen base in fewer bits: one linear layer at a time, by the library that each name stands for.

The names are SimpleTuner's. bitsandbytes keeps 4-bit NF4 with the scales quantised once more (QLoRA, Dettmers et al. 2023,
https://arxiv.org/abs/2305.14314, section 3); optimum-quanto and torchao keep integers or 8-bit floats with a scale for each row
or group. All only store fewer bits: in the forward and the backward pass a layer is brought back to the activations' format,
so an adapter trains on it as on any layer. Each library is imported when its name is chosen.

What stays as it is: `UNQUANTISED`, the layers through which everything enters and leaves, 0.4 % of the weights.
"""

import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version

import torch
from packaging.version import Version
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..errors import JobError

UNQUANTISED = ("x_embedder", "context_embedder", "time_text_embed.*", "proj_out")  # patterns of names
WHOLE = ("no_change", "bf16")
COMPILED = ("int4-quanto", "int2-quanto")
MULTIPLE = 16  # torchao's kernels take layers whose sizes are multiples of this

log = logging.getLogger(__name__)

Quantise = Callable[[nn.Linear], nn.Module]


@dataclass(frozen=True)
class Method:
    """How one name quantises: its package as pip knows it and the oldest version that will do, its module, and the bytes
    that a weight takes in the end."""

    package: str
    oldest: str
    module: str
    bytes_per_weight: float
    quantise: Quantise


@dataclass(frozen=True)
class Quantiser:
    """A method with the layers that it leaves alone, the device it works on, and what is made of a layer in the end."""

    method: Method
    unquantised: tuple[str, ...]
    via: torch.device
    finish: Callable[[nn.Module], nn.Module] = lambda layer: layer

    def takes(self, name: str, module: nn.Module) -> bool:
        """Whether the layer of this name is quantised; those that a pattern of `unquantised` fits are not."""
        if not isinstance(module, nn.Linear) or module.in_features % MULTIPLE or module.out_features % MULTIPLE:
            return False
        return not any(fnmatchcase(name, pattern) for pattern in self.unquantised)

    def quantise(self, linear: nn.Linear) -> nn.Module:
        """The layer in fewer bits; the given one is used up."""
        return self.finish(self.method.quantise(linear))


def make_quantiser(precision: str, via: torch.device, unquantised: tuple[str, ...] = UNQUANTISED) -> Quantiser | None:
    """The quantiser that this name stands for, working on a device; None where it leaves the base as it is."""
    return None if precision in WHOLE else Quantiser(METHODS[precision], unquantised, via)


def check_precision(precision: str, field: str) -> None:
    """JobError when the package behind the name is not there or does not work; `field` is what to set otherwise."""
    if precision in WHOLE:
        return
    method = METHODS[precision]
    problem = why_unusable(method)
    if problem:
        raise JobError(
            f"{field}: {precision!r} needs the package {method.package} {method.oldest} or newer ({problem}); "
            f"get it with: pip install -U {method.package}, or choose another precision"
        )


def why_unusable(method: Method) -> str:
    """What is wrong with the method's package here: it is missing, too old, or does not import; '' when nothing is."""
    try:
        importlib.import_module(method.module)
        found = version(method.package)
    except (ImportError, PackageNotFoundError) as error:
        return str(error)
    return f"{found} is installed" if Version(found) < Version(method.oldest) else ""


def check_kernels(precision: str, field: str, device: torch.device) -> None:
    """Compile what unpacks quanto's 4 and 2 bits, before anything is loaded; JobError when that cannot be done here."""
    if precision not in COMPILED:
        return
    from optimum import quanto  # noqa: F401  defines the operator

    log.warning("%s: %s compiles its kernels the first time, which takes a minute", field, precision)
    try:
        torch.ops.quanto.unpack(torch.zeros(8, 8, dtype=torch.uint8, device=device), 2)
    except (RuntimeError, OSError, ImportError) as error:
        tools = "a C++ compiler" if device.type == "cpu" else "a C++ compiler and the CUDA toolkit (nvcc)"
        reason = str(error).strip().splitlines()[0]
        raise JobError(
            f"{field}: {precision!r} must compile a kernel and cannot ({reason}); install {tools}, "
            "or choose 'nf4-bnb' or 'int8-quanto'"
        ) from None


def dequantised(layer: nn.Module) -> Tensor:
    """The weight (out, in) that a layer computes with, quantised or not."""
    if type(layer.weight).__module__.startswith("optimum.quanto"):
        return layer.weight.dequantize()
    return dequantize_module_weight(layer).detach()


def stored_bytes(module: nn.Module) -> int:
    """Bytes of the module's parameters as they are kept, scales included."""
    return sum(sum(tensor.numel() * tensor.element_size() for tensor in plain_tensors(own)) for own in module.parameters())


def plain_tensors(tensor: Tensor) -> list[Tensor]:
    """The ordinary tensors that a quantised one consists of; an ordinary one itself."""
    if hasattr(tensor, "quant_state"):
        state = tensor.quant_state
        nested = [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
        return [tensor.data, state.absmax, state.code, *nested]
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]
    return [tensor]


def _quanto(kind: str) -> Quantise:
    def quantise(linear: nn.Linear) -> nn.Module:
        from optimum import quanto

        holder = nn.Sequential(linear)
        quanto.quantize(holder, weights=quanto.qtypes[kind])
        quanto.freeze(holder)
        return holder[0]

    return quantise


def _torchao(config: str) -> Quantise:
    def quantise(linear: nn.Linear) -> nn.Module:
        from torchao import quantization

        holder = nn.Sequential(linear)
        quantization.quantize_(holder, getattr(quantization, config)())
        return holder[0]

    return quantise


def _nf4(linear: nn.Linear) -> nn.Module:
    from bitsandbytes.nn import Linear4bit, Params4bit

    weight = linear.weight
    layer = Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=weight.dtype,
        compress_statistics=True,
        quant_type="nf4",
        device="meta",
    )
    packed = Params4bit(weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=layer)
    layer.weight, layer.bias = packed.to(weight.device), linear.bias  # moving it is what quantises it
    layer.support_avx512bf16_for_cpu = False  # else pictures made on such a CPU repack it for a kernel without a gradient
    return layer


METHODS = {
    "int8-quanto": Method("optimum-quanto", "0.2.6", "optimum.quanto", 1.0, _quanto("qint8")),
    "int4-quanto": Method("optimum-quanto", "0.2.6", "optimum.quanto", 0.53, _quanto("qint4")),
    "int2-quanto": Method("optimum-quanto", "0.2.6", "optimum.quanto", 0.28, _quanto("qint2")),
    "fp8-quanto": Method("optimum-quanto", "0.2.6", "optimum.quanto", 1.0, _quanto("qfloat8")),
    "nf4-bnb": Method("bitsandbytes", "0.49", "bitsandbytes", 0.52, _nf4),
    "int8-torchao": Method("torchao", "0.9", "torchao.quantization", 1.0, _torchao("Int8WeightOnlyConfig")),
    "fp8-torchao": Method("torchao", "0.9", "torchao.quantization", 1.0, _torchao("Float8WeightOnlyConfig")),
}
