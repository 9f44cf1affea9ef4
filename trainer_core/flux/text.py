"""The two text encoders: CLIP-L gives one pooled vector a caption, T5 a sequence of vectors. Neither sees an attention mask;
which of T5's vectors are words and which padding is told with them, for those who want to hide the padding from FLUX.

Both are what FLUX.1 uses, CLIP-L/14 and the encoder of T5 v1.1 XXL, in the sizes that the file's tensors have (those of the
built-in base are small). Weights are read one tensor at a time. Tokenizers come from local files only.

Legend: B captions, L tokens of T5 (padded), D width of T5, P width of CLIP.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from ..errors import JobError
from .dialects import open_clip, open_t5
from .files import ModelFiles
from .fill import Read, Visit, fill, unseen, watched
from .flavours import Flavour
from .quantize import make_quantiser
from .tensors import TensorSource

CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
T5_V1_1_XXL = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
    "is_encoder_decoder": False,
    "use_cache": False,
}
CLIP_PREFIX = "text_model."
CLIP_HEAD_DIM = 64
UNQUANTISED_TEXT = {"nf4-bnb": ("*.wo",)}  # transformers casts what goes into T5's wo to its weight's format, here packed bits


@dataclass(frozen=True)
class EncoderFormat:
    """Number format of the activations, and the precision of each encoder's weights by the names of `quantize.py`."""

    dtype: torch.dtype
    clip_precision: str = "no_change"
    t5_precision: str = "no_change"


@dataclass(frozen=True)
class ClipEncoder:
    """CLIP with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @torch.no_grad()
    def encode(self, captions: list[str]) -> Tensor:
        """(B, P) pooled vector in the encoder's number format, on the CPU."""
        ids = token_ids(self.tokenizer, captions, self.max_length).to(self.model.device)
        return self.model(input_ids=ids).pooler_output.cpu()


@dataclass(frozen=True)
class T5Encoder:
    """T5 with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """(B, L, D) sequence in the encoder's number format, and (B, L) bool, false where it is padding; on the CPU."""
        ids, text_mask_BL = tokenized(self.tokenizer, captions, self.max_length)
        return self.model(input_ids=ids.to(self.model.device)).last_hidden_state.cpu(), text_mask_BL


def clip_encoder(
    files: ModelFiles, flavour: Flavour, encoding: EncoderFormat, device: torch.device, visit: Visit = unseen
) -> ClipEncoder:
    """CLIP of these files, ready to encode."""
    model = load_clip(files.clip_l, encoding.dtype, device, encoding.clip_precision, visit)
    length = min(flavour.clip_max_length, model.config.max_position_embeddings)
    return ClipEncoder(model, load_tokenizer(files.clip_tokenizer), length)


def t5_encoder(
    files: ModelFiles, flavour: Flavour, encoding: EncoderFormat, device: torch.device, visit: Visit = unseen
) -> T5Encoder:
    """T5 of these files, ready to encode."""
    model = load_t5(files.t5, encoding.dtype, device, encoding.t5_precision, visit)
    return T5Encoder(model, load_tokenizer(files.t5_tokenizer), flavour.t5_max_length)


def load_clip(
    path: Path, dtype: torch.dtype, device: torch.device, precision: str = "no_change", visit: Visit = unseen
) -> CLIPTextModel:
    """CLIP's text tower; JobError when the file is something else."""
    source = open_clip(path)
    config = clip_config(source)
    with torch.device("meta"):
        model = CLIPTextModel(config)
    prefix = CLIP_PREFIX if next(iter(model.state_dict())).startswith(CLIP_PREFIX) else ""  # transformers 5 dropped it
    _fill(model, source, lambda name: source.read(name.removeprefix(prefix)), dtype, device, precision, visit)
    positions = torch.arange(config.max_position_embeddings, device=device).unsqueeze(0)
    for module in model.modules():
        if "position_ids" in module._buffers:  # not stored in the file, so still on the meta device
            module.register_buffer("position_ids", positions, persistent=False)
    return model


def load_t5(
    path: Path, dtype: torch.dtype, device: torch.device, precision: str = "no_change", visit: Visit = unseen
) -> T5EncoderModel:
    """T5's encoder; JobError when the file is something else."""
    source = open_t5(path)
    with torch.device("meta"):
        model = T5EncoderModel(t5_config(source))
    _fill(model, source, source.read, dtype, device, precision, visit, frozenset({"encoder.embed_tokens"}))
    model.encoder.set_input_embeddings(model.shared)
    return model


def clip_config(source: TensorSource) -> CLIPTextConfig:
    """The sizes are those of the tensors, so that longer or smaller relatives of CLIP-L load too; the rest is CLIP-L's, or
    what the file says of itself.
    """
    vocab_size, hidden_size = _shape(source, "embeddings.token_embedding.weight")
    sizes = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": _shape(source, "encoder.layers.0.mlp.fc1.weight")[0],
        "num_hidden_layers": _count(source.entries, "encoder.layers."),
        "num_attention_heads": max(1, hidden_size // CLIP_HEAD_DIM),
        "max_position_embeddings": _shape(source, "embeddings.position_embedding.weight")[0],
    }
    return CLIPTextConfig(**(CLIP_L | sizes | _said(source, ("num_attention_heads", "bos_token_id", "eos_token_id"))))


def t5_config(source: TensorSource) -> T5Config:
    """As `clip_config`."""
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    num_buckets, num_heads = _shape(source, f"{attention}.relative_attention_bias.weight")
    vocab_size, d_model = _shape(source, "shared.weight")
    sizes = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_kv": _shape(source, f"{attention}.q.weight")[0] // num_heads,
        "d_ff": _shape(source, f"{feed_forward}.wi_0.weight")[0],
        "num_layers": _count(source.entries, "encoder.block."),
        "num_heads": num_heads,
        "relative_attention_num_buckets": num_buckets,
    }
    return T5Config(**(T5_V1_1_XXL | sizes | _said(source, ("relative_attention_max_distance",))))


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """From a tokenizer.json or a folder; never from the network. JobError when there is no tokenizer."""
    if not path.is_dir():
        return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>", eos_token="<eos>")
    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise JobError(f"{path} holds no tokenizer ({reason}); give the folder with its tokenizer.json") from None


def token_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> Tensor:
    """(B, max_length) token numbers, padded or cut."""
    return tokenized(tokenizer, captions, max_length)[0]


def tokenized(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """(B, max_length) token numbers, padded or cut, and as many booleans: false is padding."""
    batch = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask.bool()


def _shape(source: TensorSource, name: str) -> tuple[int, ...]:
    if name not in source.entries:
        raise JobError(f"{source.path} lacks the tensor {name!r}; download or copy it again")
    return source.entries[name].shape


def _count(names: Iterable[str], blocks: str) -> int:
    return len({name[len(blocks) :].split(".")[0] for name in names if name.startswith(blocks)})


def _said(source: TensorSource, fields: tuple[str, ...]) -> dict[str, Any]:
    """What is told of the model that its sizes do not tell: in the config.json of a folder, or in a file's metadata, where the
    built-in base carries it."""
    beside = source.path / "config.json"
    said = json.loads(beside.read_text(encoding="utf-8") if beside.is_file() else source.metadata.get("config", "{}"))
    return {field: said[field] for field in fields if field in said}


def _fill(
    model: PreTrainedModel,
    source: TensorSource,
    read: Read,
    dtype: torch.dtype,
    device: torch.device,
    precision: str,
    visit: Visit,
    leave_out: frozenset[str] = frozenset(),
) -> None:
    quantiser = make_quantiser(precision, device, UNQUANTISED_TEXT.get(precision, ()))
    try:
        fill(model, watched(read, visit), dtype, device, quantiser, leave_out=leave_out)
    except KeyError as error:
        raise JobError(f"{source.path} lacks the tensor {error}; download or copy it again") from None
