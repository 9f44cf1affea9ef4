"""Write pico's weight files: python -m tools.pretrain_pico.export --data DIR --vae DIR --transformer DIR  (seconds).

diffusers and transformers name the parts of these models in their own way; the files carry the names that the original
FLUX, TAESD, CLIP and T5 files carry, since those are what ComfyUI and every trainer know. The transformer is converted
back and compared before anything is written. Without --vae and --transformer it writes seeded random weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel

from . import files, model, text, vae

WEIGHTS_DIR = Path(__file__).resolve().parents[2] / "trainer_core" / "pico" / "weights"
SIZE_LIMIT = 24 * 2**20
# FLUX.1's own numbers, in fp32, since rounding them would move every latent; ComfyUI undoes them before the model
VAE_NUMBERS = {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}

RENAMED = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "proj_out": "final_layer.linear",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
}
DOUBLE = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
    "attn.norm_q": "img_attn.norm.query_norm",
    "attn.norm_k": "img_attn.norm.key_norm",
    "attn.norm_added_q": "txt_attn.norm.query_norm",
    "attn.norm_added_k": "txt_attn.norm.key_norm",
}
SINGLE = {
    "norm.linear": "modulation.lin",
    "proj_out": "linear2",
    "attn.norm_q": "norm.query_norm",
    "attn.norm_k": "norm.key_norm",
}
FUSED_DOUBLE = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
FUSED_SINGLE = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")}


def original_names(network: FluxTransformer2DModel) -> dict[str, tuple[str, ...]]:
    """Original module name -> the diffusers modules whose rows it stacks (one, or the fused three or four)."""
    table = {original: (own,) for own, original in RENAMED.items()}
    kinds = (("double_blocks", "transformer_blocks", DOUBLE, FUSED_DOUBLE, network.config.num_layers),)
    kinds += (("single_blocks", "single_transformer_blocks", SINGLE, FUSED_SINGLE, network.config.num_single_layers),)
    for original, own, renamed, fused, count in kinds:
        for i in range(count):
            table |= {f"{original}.{i}.{new}": (f"{own}.{i}.{old}",) for old, new in renamed.items()}
            table |= {f"{original}.{i}.{new}": tuple(f"{own}.{i}.{part}" for part in parts) for new, parts in fused.items()}
    return table


def swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    """Exchange scale and shift: the last layer has them in the other order in the original."""
    first, second = tensor.chunk(2)
    return torch.cat([second, first])


def to_original(network: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """The transformer's tensors under the names of the original FLUX file."""
    state, converted = network.state_dict(), {}
    for original, own in original_names(network).items():
        for kind in ("weight", "bias"):
            if f"{own[0]}.{kind}" not in state:
                continue
            tensor = torch.cat([state.pop(f"{module}.{kind}") for module in own])
            if original == "final_layer.adaLN_modulation.1":
                tensor = swap_halves(tensor)
            converted[f"{original}.{'scale' if original.endswith('_norm') else kind}"] = tensor
    assert not state, f"not converted: {sorted(state)}"
    return converted


def from_original(tensors: dict[str, torch.Tensor], network: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    """The inverse of to_original: a state dict for a network of this shape."""
    sizes, state = {name: tensor.shape[0] for name, tensor in network.state_dict().items()}, {}
    for original, own in original_names(network).items():
        for kind in ("weight", "bias"):
            name = f"{original}.{'scale' if original.endswith('_norm') else kind}"
            if name not in tensors or f"{own[0]}.{kind}" not in sizes:
                continue
            tensor = swap_halves(tensors[name]) if original.startswith("final_layer.adaLN") else tensors[name]
            rows = tensor.split([sizes[f"{module}.{kind}"] for module in own])
            state |= {f"{module}.{kind}": part for module, part in zip(own, rows, strict=True)}
    return state


def taesd_names(network: AutoencoderTiny) -> dict[str, torch.Tensor]:
    """The VAE's tensors as TAESD files have them; the original decoder counts its first clamp as layer 0."""
    named = {}
    for name, tensor in network.state_dict().items():
        half, _, index, rest = name.split(".", 3)
        named[f"taesd_{half}.{int(index) + (half == 'decoder')}.{rest}"] = tensor
    return named


def from_taesd_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inverse of taesd_names: a state dict for AutoencoderTiny."""
    state = {}
    for name, tensor in tensors.items():
        if name.startswith("taesd_"):
            half, index, rest = name.removeprefix("taesd_").split(".", 2)
            state[f"{half}.layers.{int(index) - (half == 'decoder')}.{rest}"] = tensor
    return state


def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """fp16 copies; refuses what fp16 cannot hold."""
    halves = {name: tensor.to(torch.float16) for name, tensor in tensors.items()}
    overflown = [name for name, tensor in halves.items() if not torch.isfinite(tensor).all()]
    if overflown:
        raise ValueError(f"not finite in fp16: {overflown}")
    return halves


def plain_config(config: object) -> dict[str, str]:
    """Safetensors metadata: the transformers configuration as JSON."""
    return {"config": json.dumps(config.to_dict(), sort_keys=True)}


def random_models(seed: int) -> tuple[AutoencoderTiny, FluxTransformer2DModel, text.TextEncoders]:
    """Seeded, untrained models of the final shapes."""
    torch.manual_seed(seed)
    return vae.new_vae(), model.new_transformer(), text.TextEncoders()


def write(tokenizer, autoencoder, network, encoders, out: Path, settings: dict) -> int:
    """Write all weight files; returns their size together in bytes."""
    original = half(to_original(network))
    back = from_original(original, network)
    assert back.keys() == network.state_dict().keys()
    assert all(torch.equal(back[name], tensor.half()) for name, tensor in network.state_dict().items())
    files.write_tensors(out / "transformer.safetensors", original)
    files.write_tensors(out / "vae.safetensors", half(taesd_names(autoencoder)) | VAE_NUMBERS)
    clip = half(text.clip_file_names(encoders.clip.state_dict()))
    files.write_tensors(out / "clip_l.safetensors", clip, plain_config(encoders.clip.config))
    t5 = {name: tensor for name, tensor in encoders.t5.state_dict().items() if name != "encoder.embed_tokens.weight"}
    files.write_tensors(out / "t5.safetensors", half(t5), plain_config(encoders.t5.config))
    files.write_bytes(out / "tokenizer.json", tokenizer.to_str().encode())
    files.write_json(out / "recommended.json", settings)
    size = sum(path.stat().st_size for path in out.iterdir())
    if size > SIZE_LIMIT:
        raise ValueError(f"the weights take {size} bytes, more than {SIZE_LIMIT}")
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path)
    parser.add_argument("--transformer", type=Path)
    parser.add_argument("--out", type=Path, default=WEIGHTS_DIR)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--shift", type=float, default=2.0)
    parser.add_argument("--cfg", type=float, default=3.0)
    arguments = parser.parse_args()
    autoencoder, network, encoders = random_models(seed=0)
    if arguments.vae is not None:
        autoencoder = vae.load(arguments.vae)
    if arguments.transformer is not None:
        from . import transformer

        network, encoders = transformer.load(arguments.transformer)
    tokenizer = text.load_tokenizer(arguments.data)
    tokenizer.enable_truncation(text.MAX_LENGTH)
    tokenizer.enable_padding(length=text.MAX_LENGTH, pad_id=0, pad_token=text.PAD)
    settings = {"steps": arguments.steps, "shift": arguments.shift, "cfg": arguments.cfg, "guidance": model.GUIDANCE}
    settings["max_length"] = text.MAX_LENGTH
    size = write(tokenizer, autoencoder, network, encoders, arguments.out, settings)
    print(json.dumps({"bytes": size, "limit": SIZE_LIMIT, "out": arguments.out.name}))


if __name__ == "__main__":
    main()
