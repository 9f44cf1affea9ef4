"""What reads files of tensors that may come from anybody: models, LoRAs, and the shards of the cache."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save

from trainer_core import pico
from trainer_core.adapter.which_base import open_for_its_base
from trainer_core.data.shards import DamagedShard, is_intact, read_shard
from trainer_core.flux.dialects import parts_in
from trainer_core.flux.tensors import open_tensors

from .target import Target, written


def _safetensors_seeds(folder: Path) -> list[bytes]:
    lora = {f"transformer.transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.ones(2, 256) for part in "AB"}
    lora["transformer.transformer_blocks.0.attn.to_q.lora_B.weight"] = torch.ones(256, 2)
    lora["transformer.transformer_blocks.0.attn.to_q.alpha"] = torch.tensor(2.0)
    many = {"a": torch.zeros(3, 2), "b": torch.zeros(5, dtype=torch.bfloat16), "c.latent": torch.zeros(())}
    scaled = {"x.weight": torch.zeros(4, 4, dtype=torch.float8_e4m3fn), "x.scale_weight": torch.ones(())}
    return [save(lora, {"config": "{}"}), save(many, {"a": "0f", "c": "1"}), save(scaled)]


def _read_safetensors(data: bytes, folder: Path) -> None:
    path = written(folder, "a.safetensors", data)
    with suppress(DamagedShard):
        for entry in read_shard(path).values():
            is_intact(entry, lambda start, length: data[start : start + length])
    source = open_tensors(path)
    parts_in(source)
    for name in source.entries:
        source.read(name)
    open_for_its_base(path, pico.TRANSFORMER_PATH)


def _gguf_seeds(folder: Path) -> list[bytes]:
    import gguf

    for kind in ("Q8_0", "Q4_0", "F16"):
        writer = gguf.GGUFWriter(folder / f"{kind}.gguf", "flux")
        wanted = gguf.GGMLQuantizationType[kind]
        values = np.ones((4, 64), dtype=np.float32)
        writer.add_array("comfy.gguf.orig_shape.b", [2, 2, 64])
        writer.add_string("general.name", "small")
        for name in "ab":
            writer.add_tensor(name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return [path.read_bytes() for path in sorted(folder.glob("*.gguf"))]


def _read_gguf(data: bytes, folder: Path) -> None:
    source = open_tensors(written(folder, "a.gguf", data))
    for name in source.entries:
        source.read(name)
        source.read(name, (0, 1))


WEIGHTS = {
    "safetensors": Target(_safetensors_seeds, _read_safetensors),
    "gguf": Target(_gguf_seeds, _read_gguf),
}
