"""A LoRA file as ComfyUI's LORA_MODEL: its tensors by their keys."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def load_lora(path: Path) -> "dict[str, Tensor]":
    """The LoRA's tensors. Normal ones: those made in ComfyUI's inference mode could not be trained on or changed later."""
    import torch
    from safetensors.torch import load_file

    with torch.inference_mode(False):
        return load_file(path)
