"""The built-in base in every dialect in which people have FLUX, written from its own weights."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer_core.flux.files import PICO_FILES
from trainer_core.flux.load import load_transformer, read_shape
from trainer_core.flux.tensors import open_tensors
from trainer_core.flux.vae import tiny_to_diffusers

CPU = torch.device("cpu")
SHAPE = read_shape(PICO_FILES.transformer)
FP8 = torch.float8_e4m3fn
ORIGINAL = load_file(PICO_FILES.transformer)
WITHOUT_GUIDANCE = {name: tensor for name, tensor in ORIGINAL.items() if not name.startswith("guidance_in.")}  # as schnell's
Tensors = dict[str, Tensor]


def original(dtype: torch.dtype) -> Tensors:
    return {name: tensor.to(dtype) for name, tensor in ORIGINAL.items()}


def in_diffusers(dtype: torch.dtype) -> Tensors:
    """diffusers' names; the values are those of the original."""
    model = load_transformer(PICO_FILES.transformer, torch.float32, CPU)
    return {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}


def scaled_fp8(
    tensors: Tensors, names: tuple[str, str] = ("scale_weight", "scale_input"), marker: str = "scaled_fp8"
) -> Tensors:
    """Each matrix as fp8 and its scale, as ComfyUI's scaled files have them."""
    packed = {marker: torch.zeros(2, dtype=FP8)} if marker else {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or not name.endswith(".weight"):
            packed[name] = tensor
            continue
        scale = tensor.abs().max().float() / 448
        layer = name.removesuffix("weight")
        packed |= {
            name: (tensor.float() / scale).to(FP8),
            layer + names[0]: scale,
            layer + names[1]: torch.ones((), dtype=torch.float32),
        }
    return packed


def unpacked(packed: Tensors) -> Tensors:
    """What such a file means, in float32: plain fp8 too."""
    ends = (".scale_weight", ".weight_scale")
    scales = {name[: -len(end)] + ".weight": scale for name, scale in packed.items() for end in ends if name.endswith(end)}
    hidden = ("scale_weight", "scale_input", "weight_scale", "input_scale", "scaled_fp8", "comfy_quant")
    return {name: tensor.float() * scales.get(name, 1.0) for name, tensor in packed.items() if not name.endswith(hidden)}


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def long_clip() -> Tensors:
    """pico's CLIP with as many positions as FLUX's has, so that the FLUX flavours can use it."""
    tensors, name = load_file(PICO_FILES.clip_l), "text_model.embeddings.position_embedding.weight"
    return tensors | {name: tensors[name].repeat(3, 1)[:77]}


def checkpoint(transformer: Tensors, t5: Tensors | None = None) -> Tensors:
    """Everything in one file, by the names that ComfyUI's CheckpointSave gives."""
    return {
        **prefixed("model.diffusion_model.", transformer),
        **prefixed("vae.", load_file(PICO_FILES.vae)),
        **prefixed("text_encoders.clip_l.transformer.", long_clip()),
        "text_encoders.clip_l.transformer.text_projection.weight": torch.zeros(64, 64),
        "text_encoders.clip_l.logit_scale": torch.zeros(()),
        **prefixed("text_encoders.t5xxl.transformer.", load_file(PICO_FILES.t5) if t5 is None else t5),
    }


def write_sharded(folder: Path, tensors: Tensors, stem: str, count: int = 3) -> None:
    """As `save_pretrained` cuts a large model."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(tensors)
    where = {}
    for number in range(count):
        file = f"{stem}-{number + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[number::count]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": where}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_pipeline(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """A folder as diffusers' FluxPipeline.save_pretrained writes it."""
    write_sharded(folder / "transformer", in_diffusers(dtype), "diffusion_pytorch_model")
    write_sharded(folder / "text_encoder_2", load_file(PICO_FILES.t5), "model", 2)
    (folder / "vae").mkdir()
    save_file(tiny_to_diffusers(load_file(PICO_FILES.vae)), folder / "vae" / "diffusion_pytorch_model.safetensors")
    (folder / "text_encoder").mkdir()
    for name, file in (("text_encoder", PICO_FILES.clip_l), ("text_encoder_2", PICO_FILES.t5)):
        config = open_tensors(file).metadata["config"]
        (folder / name / "config.json").write_text(config, encoding="utf-8")
    save_file(load_file(PICO_FILES.clip_l), folder / "text_encoder" / "model.safetensors")
    for name, tokenizer in (("tokenizer", PICO_FILES.clip_tokenizer), ("tokenizer_2", PICO_FILES.t5_tokenizer)):
        (folder / name).mkdir()
        (folder / name / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
        (folder / name / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}', encoding="utf-8")
    return folder


def write_gguf(path: Path, tensors: Tensors, kind: str, architecture: str = "flux") -> Path:
    """Matrices quantised as `kind`, the rest in float32, as converters do; what does not divide into blocks stays F16."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    wanted = gguf.GGMLQuantizationType[kind]
    for name, tensor in tensors.items():
        block = gguf.GGML_QUANT_SIZES[wanted][0]
        fits = tensor.ndim == 2 and tensor.shape[-1] % block == 0
        chosen = wanted if fits else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(tensor.float().numpy(), chosen)
        writer.add_tensor(name, data, raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write(path: Path, tensors: Tensors) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path
