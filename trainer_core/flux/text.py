"""The two text encoders: CLIP-L gives one pooled vector a caption, T5 a sequence of vectors. Neither sees an attention mask;
which of T5's vectors are words and which padding is told with them, for those who want to hide the padding from FLUX.

A file that carries its own config in the safetensors metadata (the built-in base does) is built from it; otherwise it is what
FLUX.1 uses, CLIP-L/14 and the encoder of T5 v1.1 XXL. Tokenizers come from local files only.

Legend: B captions, L tokens of T5 (padded), D width of T5, P width of CLIP.
"""

import json
from dataclasses import dataclass
from pathlib import Path

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
from .files import ModelFiles, read_header, read_tensors
from .flavours import Flavour

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


@dataclass(frozen=True)
class TextEncoders:
    """Both encoders with their tokenizers, ready to encode."""

    clip: PreTrainedModel
    t5: PreTrainedModel
    clip_tokenizer: PreTrainedTokenizerBase
    t5_tokenizer: PreTrainedTokenizerBase
    flavour: Flavour

    @torch.no_grad()
    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, D) sequence and (B, P) pooled vector in the encoders' number format, and (B, L) bool, false where the
        sequence is padding; on the CPU."""
        clip_ids = token_ids(self.clip_tokenizer, captions, self.flavour.clip_max_length).to(self.clip.device)
        t5_ids, text_mask_BL = tokenized(self.t5_tokenizer, captions, self.flavour.t5_max_length)
        pooled_BP = self.clip(input_ids=clip_ids).pooler_output
        text_BLD = self.t5(input_ids=t5_ids.to(self.t5.device)).last_hidden_state
        return text_BLD.cpu(), pooled_BP.cpu(), text_mask_BL


def load_text_encoders(files: ModelFiles, flavour: Flavour, dtype: torch.dtype, device: torch.device) -> TextEncoders:
    return TextEncoders(
        clip=load_clip(files.clip_l, dtype, device),
        t5=load_t5(files.t5, dtype, device),
        clip_tokenizer=load_tokenizer(files.clip_tokenizer),
        t5_tokenizer=load_tokenizer(files.t5_tokenizer),
        flavour=flavour,
    )


def load_clip(path: Path, dtype: torch.dtype, device: torch.device) -> CLIPTextModel:
    """CLIP's text tower; JobError when the file is something else."""
    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**(_stored_config(path) or CLIP_L)))
    prefix = CLIP_PREFIX if next(iter(model.state_dict())).startswith(CLIP_PREFIX) else ""  # transformers 5 dropped it
    tensors = {
        prefix + name.removeprefix(CLIP_PREFIX): tensor for name, tensor in read_tensors(path, _is_clip, dtype, device).items()
    }
    _fill(model, tensors, path, "a CLIP-L text encoder")
    positions = torch.arange(model.config.max_position_embeddings, device=device).unsqueeze(0)
    for module in model.modules():
        if "position_ids" in module._buffers:  # not stored in the file, so still on the meta device
            module.register_buffer("position_ids", positions, persistent=False)
    return model


def load_t5(path: Path, dtype: torch.dtype, device: torch.device) -> T5EncoderModel:
    """T5's encoder; JobError when the file is something else."""
    with torch.device("meta"):
        model = T5EncoderModel(T5Config(**(_stored_config(path) or T5_V1_1_XXL)))
    tensors = read_tensors(path, lambda name: name.startswith(("shared.", "encoder.")), dtype, device)
    tensors.setdefault("encoder.embed_tokens.weight", tensors.get("shared.weight", torch.empty(0)))
    _fill(model, tensors, path, "a T5 v1.1 XXL encoder")
    model.tie_weights()
    return model


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """From a tokenizer.json or a folder; never from the network."""
    if path.is_dir():
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    return PreTrainedTokenizerFast(tokenizer_file=str(path), pad_token="<pad>", eos_token="<eos>")


def token_ids(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> Tensor:
    """(B, max_length) token numbers, padded or cut."""
    return tokenized(tokenizer, captions, max_length)[0]


def tokenized(tokenizer: PreTrainedTokenizerBase, captions: list[str], max_length: int) -> tuple[Tensor, Tensor]:
    """(B, max_length) token numbers, padded or cut, and as many booleans: false is padding."""
    batch = tokenizer(captions, padding="max_length", max_length=max_length, truncation=True, return_tensors="pt")
    return batch.input_ids, batch.attention_mask.bool()


def _is_clip(name: str) -> bool:
    return not name.endswith("position_ids") and not name.startswith(("text_projection", "logit_scale", "vision_model"))


def _stored_config(path: Path) -> dict | None:
    """The config that the file carries in its metadata, if it does."""
    text = read_header(path).get("__metadata__", {}).get("config")
    return json.loads(text) if text else None


def _fill(model: PreTrainedModel, tensors: dict[str, Tensor], path: Path, kind: str) -> None:
    """Give the model on the meta device its tensors, frozen, in evaluation mode."""
    try:
        result = model.load_state_dict(tensors, strict=False, assign=True)
    except RuntimeError:
        raise JobError(f"{path} is not {kind}: its tensors have other sizes") from None
    if result.missing_keys:
        raise JobError(f"{path} is not {kind}: it lacks {result.missing_keys[0]!r} and {len(result.missing_keys) - 1} more")
    model.requires_grad_(False).eval()
