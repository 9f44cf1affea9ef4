"""Adapter files in every naming that ComfyUI reads for FLUX, brought to diffusers' modules.

An adapter's key is the name of a layer and of one of its matrices. Trainers agree on neither, but each of their files is one
way to say the layer (`LAYER` below) with one way to say the matrix (`_SUFFIXES`), so two tables hold them all:

  transformer.LAYER             diffusers, SimpleTuner, ai-toolkit        layers as diffusers names them
  base_model.model.LAYER        PEFT                                      both
  lycoris_LAYER_                LyCORIS in SimpleTuner                    diffusers, with _ for .
  lora_transformer_LAYER_       OneTrainer                                diffusers, with _ for .
  diffusion_model.LAYER         BFL's own names, as ComfyUI knows them    original
  lora_unet_LAYER_              kohya                                     original, with _ for .
  LAYER                         nothing in front                          both
  BLOCK.processor.qkv_lora1 ..  XLabs, USO                                original attention, by the name of its processor

The original keeps several of diffusers' layers in one matrix (flux/names.py); such an adapter is cut by rows, exactly. ComfyUI
(0.3.64) reads PEFT's prefix for other models only and bare names only of USO; they are unmistakable, so they are read here.

Nothing in a file is passed over in silence: what belongs to the text encoders is left out with a warning, since no trainer
here and no assistant touches those, and everything else that is not understood is a JobError. Another model's adapter, too.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from ..errors import JobError
from ..flux.files import read_header
from ..flux.load import FluxShape, empty_transformer
from ..flux.names import SWAPPED_HALVES, Name, linear_names
from ..flux.tensors import TensorSource, open_tensors
from .file_factors import KIND_OF_PART, Factors, Kind, build_factors

log = logging.getLogger(__name__)

Layers = dict[str, tuple[Name, ...]]  # what a file may call a layer -> what of diffusers' it is; `rows` in units of D

_SUFFIXES = {  # the end of a key -> the part that it is, longest first
    suffix: part
    for down, up in (
        (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
        (".lora_A.default.weight", ".lora_B.default.weight"),
        (".lora_down.weight", ".lora_up.weight"),
        (".lora.down.weight", ".lora.up.weight"),
        ("_lora.down.weight", "_lora.up.weight"),
        (".lora_A.weight", ".lora_B.weight"),
        (".down.weight", ".up.weight"),
        (".lora_A", ".lora_B"),
    )
    for suffix, part in ((down, "down"), (up, "up"))
}
_SUFFIXES |= {f".{part}": part for part in (*KIND_OF_PART, "alpha") if part not in ("down", "up")}

_TEXT_ENCODERS = ("lora_te", "text_encoder", "bundle_emb")  # also lora_te1, text_encoders, ...

_REFUSED = {  # the end of a key -> what it is that cannot be taken over
    ".dora_scale": "DoRA's magnitudes",
    ".lora_magnitude_vector": "DoRA's magnitudes",
    ".lora_magnitude_vector.weight": "DoRA's magnitudes",
    ".diff": "a whole change of a weight",
    ".diff_b": "a change of a bias",
    ".lora_B.bias": "a change of a bias",
    ".set_weight": "a new weight",
    "_norm.scale": "a new norm, as in FLUX's control LoRAs",
    ".w_norm": "a change of a norm",
    ".b_norm": "a change of a norm",
    ".reshape_weight": "a new size of a layer",
    ".lora_mid.weight": "a convolution",
    ".lokr_t2": "a convolution",
    ".hada_t1": "a convolution",
    ".hada_t2": "a convolution",
    ".oft_blocks": "OFT",
    ".rescale": "OFT",
    **{f".{part}.weight": "GLoRA" for part in ("a1", "a2", "b1", "b2")},
}

_OTHER_MODELS = {  # what is in a key -> the model that has it
    r"input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block": "Stable Diffusion 1, 2 or XL",
    r"joint_blocks": "Stable Diffusion 3",
    r"blocks[._]\d+[._](self|cross)_attn": "Wan",
    r"double_blocks\.\d+\.img_attn_qkv|token_refiner": "HunyuanVideo",
    r"to_qkv_mlp_proj|_stream_modulation": "FLUX.2",
    r"distilled_guidance": "Chroma",
    r"img_mlp[._]net": "Qwen-Image",
}

_PROCESSORS = {  # XLabs' and USO's names; in a single block "_lora" is taken as the beginning of the suffix
    "img_attn.qkv": "processor.qkv_lora1",
    "txt_attn.qkv": "processor.qkv_lora2",
    "img_attn.proj": "processor.proj_lora1",
    "txt_attn.proj": "processor.proj_lora2",
    "linear1_qkv": "processor.qkv",
    "linear2": "processor.proj",
}


@dataclass(frozen=True, eq=False)
class AdapterFile:
    """An adapter by diffusers' names of the layers, in the model's order."""

    kind: Kind
    modules: dict[str, Factors]


@dataclass(frozen=True, eq=False)
class AdapterSource:
    """An adapter still in its file: checked by its header alone, and read a layer at a time, in float32 on the CPU.

    `places` has, by diffusers' name and in the model's order, which layer of the file it is, or which rows of one.
    """

    shape: FluxShape
    kind: Kind
    places: Mapping[str, tuple[str, Name]]
    _tensors: TensorSource
    _keys: Mapping[str, Mapping[str, str]]
    _sizes: Mapping[str, tuple[int, int]]
    _layers: Layers

    @property
    def path(self) -> Path:
        return self._tensors.path

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._tensors.metadata

    @property
    def dtypes(self) -> set[str]:
        """The formats of its matrices, by safetensors' names for them."""
        keys = (key for parts in self._keys.values() for part, key in parts.items() if part != "alpha")
        return {self._tensors.entries[key].dtype for key in keys}

    @property
    def num_parameters(self) -> int:
        """The numbers in its matrices."""
        keys = (key for parts in self._keys.values() for part, key in parts.items() if part != "alpha")
        return sum(self._tensors.entries[key].num_values for key in keys)

    def read(self, module: str) -> Factors:
        """The factors of one of diffusers' modules. JobError where they do not fit the layer, or cannot be taken apart."""
        layer, name = self.places[module]
        where = f"{self.path}: {layer}"
        parts = {part: self._tensors.read(key).float() for part, key in self._keys[layer].items()}
        _, factors = build_factors(parts, where)
        _check_size(factors, self._layers[layer], self._sizes, where)
        return _cut(factors, name, self.shape.width, where)


def read_adapter(path: Path, shape: FluxShape) -> AdapterFile:
    """The adapter in this file, for a base of this shape, in float32 on the CPU.

    JobError when it is no adapter, not for this base, of mixed kinds, or more than its factors can say.
    """
    source = open_adapter(path, shape)
    return AdapterFile(source.kind, {name: source.read(name) for name in source.places})


def open_adapter(path: Path, shape: FluxShape) -> AdapterSource:
    """The adapter in this file, for a base of this shape. JobError as `read_adapter`, for all that its header tells."""
    if not path.is_file():
        raise JobError(f"there is no file {path}; correct the path, or put the adapter there")
    layers, sizes = known_layers(shape), _sizes(shape)
    keys = _keys_by_layer(path, layers, shape)
    found: dict[str, tuple[str, Name]] = {}
    for layer in keys:
        for name in layers[layer]:
            if name.diffusers in found:
                raise JobError(
                    f"{path}: {layer} adapts {name.diffusers}, which another key adapts too; use a file in one naming"
                )
            found[name.diffusers] = layer, name
    by_layer = [{KIND_OF_PART[part] for part in parts if part != "alpha"} for parts in keys.values()]
    kinds = sorted({kind for kinds in by_layer if len(kinds) == 1 for kind in kinds})
    if len(kinds) > 1:
        raise JobError(f"{path} mixes {' and '.join(kinds)}; use an adapter of one kind")
    places = {name: found[name] for name in sizes if name in found}
    return AdapterSource(shape, (kinds or ["lora"])[0], places, open_tensors(path), keys, sizes, layers)


def known_layers(shape: FluxShape) -> Layers:
    """Every way in which a file may name a layer of this base."""
    layers: Layers = {}
    original: Layers = {}
    for name in linear_names(shape.num_double, shape.num_single, shape.guidance):
        original[name.original] = (*original.get(name.original, ()), name)
        whole = (Name(name.diffusers, name.diffusers),)
        flat = name.diffusers.replace(".", "_")
        layers |= {prefix + name.diffusers: whole for prefix in ("transformer.", "base_model.model.", "")}
        layers |= {prefix + flat: whole for prefix in ("lycoris_", "lora_transformer_")}
    attention = {f"{layer}_qkv": names[:3] for layer, names in original.items() if layer.endswith(".linear1")}
    for layer, names in (original | attention).items():
        layers |= {prefix + layer: names for prefix in ("diffusion_model.", "base_model.model.", "")}
        layers["lora_unet_" + layer.replace(".", "_")] = names
        block, inside = layer.split(".")[:2], layer.split(".", 2)[-1]
        if inside in _PROCESSORS:
            layers[".".join((*block, _PROCESSORS[inside]))] = names
    return layers


def _keys_by_layer(path: Path, layers: Layers, shape: FluxShape) -> dict[str, dict[str, str]]:
    """The file's keys by layer and part; JobError for any that are neither these nor a text encoder's."""
    keys = [key for key in read_header(path) if key != "__metadata__"]
    text = {key for key in keys if key.startswith(_TEXT_ENCODERS)}
    places = {key: _split(key) for key in keys if key not in text}
    refused = {key: meaning for key in places for suffix, meaning in _REFUSED.items() if key.endswith(suffix)}
    unknown = [key for key, (layer, _) in places.items() if layer not in layers and key not in refused]
    if unknown:
        raise JobError(f"{path} {_what_is_unknown(keys, unknown, layers, shape)}")
    if refused:
        raise JobError(
            f"{path} holds {' and '.join(dict.fromkeys(refused.values()))}, which cannot be taken over: {len(refused)} of its "
            f"{len(keys)} tensors, such as {_some(list(refused))}; use an adapter that is lora, lokr or loha alone"
        )
    if not places:
        raise JobError(f"{path} holds nothing for FLUX's transformer ({len(text)} tensors for text encoders); use another file")
    if text:
        log.warning("%s: %d tensors for the text encoders are left out; only the transformer is adapted", path, len(text))
    by_layer: dict[str, dict[str, str]] = {}
    for key, (layer, part) in places.items():
        parts = by_layer.setdefault(layer, {})
        if part in parts:
            first, last = sorted((parts[part], key))
            raise JobError(f"{path}: {layer} has {part} twice, as {first} and as {last}; use a file in one naming")
        parts[part] = key
    return by_layer


def _split(key: str) -> tuple[str, str]:
    """The layer and the part that a key names; ("", "") where it ends in none."""
    return next(((key.removesuffix(suffix), part) for suffix, part in _SUFFIXES.items() if key.endswith(suffix)), ("", ""))


def _what_is_unknown(keys: list[str], unknown: list[str], layers: Layers, shape: FluxShape) -> str:
    """Ends the sentence that begins with the file's name."""
    if not any(_split(key)[1] for key in keys):
        return f"is no adapter: {len(keys)} tensors such as {_some(keys)}; give a LoRA, LoKr or LoHa for FLUX.1"
    held = f"names {len(unknown)} tensors that this base has no place for, such as {_some(unknown)}"
    for mark, model in _OTHER_MODELS.items():
        if any(re.search(mark, key) for key in unknown):
            return f"is an adapter for {model}: it {held}; use one for FLUX.1"
    if any("guidance" in key for key in unknown) and not shape.guidance:
        return f"{held}: the base has no guidance embedder, as schnell; use an adapter that was made for it"
    blocks = {_numberless(layer) for layer in layers}
    if any(_numberless(_split(key)[0]) in blocks for key in unknown):
        depth = f"{shape.num_double} double and {shape.num_single} single blocks"
        return f"is for a deeper model: it {held}, and the base has {depth}; use an adapter that was made for this base"
    return f"{held}; use an adapter for FLUX.1 in a naming that ComfyUI reads"


def _numberless(layer: str) -> str:
    return re.sub(r"(blocks[._])\d+", r"\1N", layer)


def _some(keys: list[str]) -> str:
    return ", ".join(repr(key) for key in keys[:3])


@lru_cache
def _sizes(shape: FluxShape) -> Mapping[str, tuple[int, int]]:
    """(out, in) of every layer that can be adapted, by diffusers' name."""
    model = empty_transformer(shape)
    names = linear_names(shape.num_double, shape.num_single, shape.guidance)
    linears = ((name.diffusers, model.get_submodule(name.diffusers)) for name in names)
    return {name: (linear.out_features, linear.in_features) for name, linear in linears}


def _check_size(factors: Factors, names: tuple[Name, ...], sizes: Mapping[str, tuple[int, int]], where: str) -> None:
    wanted = (sum(sizes[name.diffusers][0] for name in names), sizes[names[0].diffusers][1])
    if factors.size() != wanted:
        got = factors.size()
        raise JobError(
            f"{where} is for a layer of {got[0]} x {got[1]}, in this base it is {wanted[0]} x {wanted[1]}; "
            "the adapter was made for another model, use one for this base"
        )


def _cut(factors: Factors, name: Name, width: int, where: str) -> Factors:
    """The part of a layer's factors that is this one of diffusers' modules, its rows in diffusers' order."""
    if name.rows:
        index = torch.arange(name.rows[0] * width, name.rows[1] * width)
    elif name.diffusers == SWAPPED_HALVES != name.original:
        index = torch.arange(factors.size()[0]).roll(width)
    else:
        return factors
    cut = factors.rows(index)
    if cut is None:
        raise JobError(
            f"{where} is a lokr over {name.diffusers} and its neighbours at once and cannot be taken apart: a row of lokr_w1 "
            "reaches over the border between them; use a lokr in diffusers' or SimpleTuner's naming, or a LoRA"
        )
    return cut
