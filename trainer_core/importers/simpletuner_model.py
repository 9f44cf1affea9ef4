"""What becomes of SimpleTuner's options about the base: flavour, files, number formats and memory."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..file_names import expanded
from ..specs.base import MODEL_FILE_FIELDS
from .simpletuner_draft import EMPTY, IDLE, OTHERWISE, REFUSED, TAKEN, Draft, Row, Unfit, by, ignore, is_on, otherwise, take

HUB_IDS = {
    "krea": "black-forest-labs/FLUX.1-Krea-dev",
    "dev": "black-forest-labs/FLUX.1-dev",
    "schnell": "black-forest-labs/FLUX.1-schnell",
    "kontext": "black-forest-labs/FLUX.1-Kontext-dev",
    "fluxbooru": "terminusresearch/fluxbooru-v0.3",
    "libreflux": "jimmycarter/LibreFlux-SimpleTuner",
}
SINGLE_FILES = (".safetensors", ".gguf")
WHOLE, TRANSFORMER, VAE = (f"pretrained_{part}model_name_or_path" for part in ("", "transformer_", "vae_"))
SUBFOLDER = "pretrained_transformer_subfolder"

ALIKE = "there is no {0} here; {1} is the nearest"
PRECISIONS = {  # of the base: SimpleTuner's name -> ours, '' where it is the same
    **dict.fromkeys(
        ("no_change", "bf16", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "nf4-bnb", "int8-torchao"), ""
    ),
    "fp8-torchao": "",
    "fp8uz-quanto": "fp8-quanto",
    "fp8wo-torchao": "fp8-torchao",
    "int4-torchao": "int4-quanto",
    "int8dq-int4-torchao": "int4-quanto",
    "fp8-int4-torchao": "int4-quanto",
    "int8-sdnq": "int8-quanto",
    "uint8-sdnq": "int8-quanto",
    "fp8-sdnq": "fp8-quanto",
    "uint4-sdnq": "int4-quanto",
    "uint2-sdnq": "int2-quanto",
    "fp16-sdnq": "no_change",
}
MULTIPLIED = {  # those that multiply in 8 bits, too
    "int8dq-torchao": "int8-torchao",
    "fp8-native": "fp8-torchao",
    "fp8-transformerengine": "fp8-torchao",
}
ATTENTION = {
    "diffusers": "",
    "xformers": "",
    "sageattention": "",
    "sageattention-int8-fp16-triton": "sageattention",
    "sageattention-int8-fp16-cuda": "sageattention",
    "sageattention-int8-fp8-cuda": "sageattention",
    "flash": "",
    "flash-attn": "flash",
    "flash-attn-2": "flash",
    "flash-attn-3": "flash",
    "cudnn": "diffusers",
    "flex": "diffusers",
}
SWAPS_ELSEWHERE = "not taken: blocks_to_swap of the base does this here, and `flux-lora check` says how many blocks help"


class Swaps(NamedTuple):
    """What the user gives in place of what the configuration names."""

    base: str = ""
    transformer: str = ""
    vae: str = ""
    clip_l: str = ""
    t5: str = ""
    clip_tokenizer: str = ""
    t5_tokenizer: str = ""
    assistant_lora: str = ""
    allow_download: bool = False

    def files(self) -> dict[str, str]:
        """Field of the base -> file, of those that are given."""
        fields = (*MODEL_FILE_FIELDS, "assistant_lora_path")
        given = {field: getattr(self, field.removesuffix("_path")) for field in fields}
        return {field: str(expanded(path).absolute()) for field, path in given.items() if path}


def later(draft: Draft, option: str, value: Any) -> None:
    """What becomes of it depends on others and is said by a `settle_` function."""


def _model_type(draft: Draft, option: str, value: Any) -> None:
    if str(value).lower() != "lora":
        raise Unfit("only adapters are trained here, not whole models; set it to lora")
    draft.note(TAKEN, option, "adapters are all that is trained here")


def _model_family(draft: Draft, option: str, value: Any) -> None:
    if str(value).lower() not in ("flux", "flux1"):
        raise Unfit("only FLUX.1 is trained here; its family is flux")
    draft.note(TAKEN, option, "FLUX.1 is all that is trained here")


def _from_table(path: str, table: dict[str, str]) -> Row:
    """A choice by a table of names; one that is not in it is refused."""
    return by(partial(_choose, path, table))


def _choose(path: str, table: dict[str, str], draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    if value in EMPTY:
        return draft.note(IDLE, option, "is empty")
    if name not in table:
        raise Unfit(f"known here are {', '.join(dict.fromkeys(ours or name for name, ours in table.items()))}")
    draft.put(path, table[name] or name)
    if not table[name]:
        return draft.note(TAKEN, option, path)
    draft.note(OTHERWISE, option, f"{path}: {ALIKE.format(name, table[name])}")


def _precision(draft: Draft, option: str, value: Any) -> None:
    ours = MULTIPLIED.get(name := str(value).strip().lower())
    if ours is None:
        return _choose("base.base_model_precision", PRECISIONS, draft, option, value)
    draft.put("base.base_model_precision", ours)
    draft.put("base.quantized_matmul", True)
    draft.note(OTHERWISE, option, f"base.base_model_precision: {ALIKE.format(name, f'{ours} with base.quantized_matmul')}")


def _encoder_precision(path: str) -> Row:
    def become(draft: Draft, option: str, value: Any) -> None:
        name = str(value).strip().lower()
        if name in ("no_change", "bf16", "", "none"):
            return draft.note(TAKEN, option, path)
        chosen = name if name in ("int8-quanto", "nf4-bnb") else "int8-quanto"
        draft.put(path, chosen)
        draft.note(*((TAKEN, option, path) if chosen == name else (OTHERWISE, option, f"{path}: {ALIKE.format(name, chosen)}")))

    return by(become)


def _mixed_precision(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    if name in ("bf16", "no"):
        draft.put("base.mixed_precision", name)
        return draft.note(TAKEN, option, "base.mixed_precision")
    draft.put("base.mixed_precision", "bf16")
    draft.note(OTHERWISE, option, f"base.mixed_precision: {name} overflows in FLUX or has no gain; bf16 is taken")


def _quantize_via(draft: Draft, option: str, value: Any) -> None:
    name = str(value).strip().lower()
    chosen = {"pipeline": "accelerator"}.get(name, name)
    draft.put("base.quantize_via", chosen)
    text = "base.quantize_via: each layer is quantised as it is read, so the whole of FLUX is never in memory"
    draft.note(OTHERWISE, option, f"{text}; {chosen} for {name}" if chosen != name else text)


def _blocks_to_swap(draft: Draft, option: str, value: Any) -> None:
    draft.put("base.blocks_to_swap", value)
    text = "base.blocks_to_swap: there, blocks stay on the card after their backward pass; here they leave it again"
    draft.note(OTHERWISE, option, text)


def _sage_usage(draft: Draft, option: str, value: Any) -> None:
    if "training" in str(value):
        text = "sageattention has no gradient, so layers would not learn; here it serves the pictures alone"
        return draft.note(OTHERWISE, option, text)
    draft.note(TAKEN, option, "sageattention serves the pictures alone")


MODEL: dict[str, Row] = {
    "model_type": by(_model_type),
    "model_family": by(_model_family),
    "model_flavour": by(later),
    WHOLE: by(later),
    TRANSFORMER: by(later),
    VAE: by(later),
    SUBFOLDER: by(later),
    "base_model_precision": by(_precision),
    "text_encoder_1_precision": _encoder_precision("base.text_encoder_1_precision"),
    "text_encoder_2_precision": _encoder_precision("base.text_encoder_2_precision"),
    "text_encoder_3_precision": ignore("FLUX.1 has two text encoders"),
    "text_encoder_4_precision": ignore("FLUX.1 has two text encoders"),
    "quantize_via": by(_quantize_via),
    "mixed_precision": by(_mixed_precision),
    "base_model_default_dtype": ignore("the base keeps the format of mixed_precision, the adapter is kept in float32"),
    "offload_during_startup": take("base.offload_during_startup"),
    "vae_enable_tiling": take("base.vae_enable_tiling"),
    "vae_enable_slicing": take("base.vae_enable_slicing"),
    "vae_batch_size": take("base.vae_batch_size"),
    "vae_dtype": ignore("the VAE works in float32"),
    "attention_mechanism": _from_table("base.attention_mechanism", ATTENTION),
    "sageattention_usage": by(_sage_usage),
    "musubi_blocks_to_swap": by(_blocks_to_swap),
    "enable_group_offload": ignore(SWAPS_ELSEWHERE),
    "ramtorch": ignore(SWAPS_ELSEWHERE),
    "assistant_lora_path": by(later),
    "disable_assistant_lora": by(later),
    "assistant_lora_strength": take("base.assistant_lora_strength"),
    "assistant_lora_inference_strength": take("base.assistant_lora_inference_strength"),
    "tokenizer_max_length": ignore("T5 reads 512 tokens, 256 with schnell; the original forces the same"),
    "t5_padding": otherwise("", "padding is encoded as it comes out of T5; flux_attention_masked_training hides it"),
    "fuse_qkv_projections": ignore("layers stay as they are in the file"),
}


def settle_base(draft: Draft, swaps: Swaps) -> None:
    """Flavour and files: pico where it is wished for, else what is named or given in its place."""
    if swaps.base:
        draft.put("base.model_flavour", swaps.base)
        for option in ("model_flavour", WHOLE, TRANSFORMER, VAE, SUBFOLDER, "assistant_lora_path", "disable_assistant_lora"):
            if option in draft.options:
                draft.note(OTHERWISE, option, f"left out: {swaps.base} is the base, by --base")
        for name in ("assistant_lora_strength", "assistant_lora_inference_strength"):
            draft.parts["base"].drop(name)
        return
    flavour = _settle_flavour(draft)
    draft.put("base.allow_download", swaps.allow_download)
    _settle_files(draft, flavour, swaps)
    _settle_assistant(draft, flavour, swaps)


def _settle_flavour(draft: Draft) -> str:
    """By the label, but where the hub id is that of another flavour, by the id: its weights are what is loaded."""
    label = str(draft.options.get("model_flavour") or "krea").strip().lower()
    known = {hub_id.lower(): name for name, hub_id in HUB_IDS.items()}
    found = known.get(str(draft.options.get(WHOLE, "")).strip().lower(), label)
    draft.put("base.model_flavour", found)
    if found != label:
        text = f"base.model_flavour {found}: the label says {label}, but {WHOLE} names {found}, and that is what is loaded"
        draft.note(OTHERWISE, "model_flavour", text)
    elif draft.given("model_flavour"):
        draft.note(TAKEN, "model_flavour", "base.model_flavour")
    else:
        draft.note(OTHERWISE, "model_flavour", "not given: krea, as in the original")
    return found


def _settle_files(draft: Draft, flavour: str, swaps: Swaps) -> None:
    given = swaps.files()
    whole = str(draft.options.get(WHOLE) or "").strip()
    if whole.lower().endswith(SINGLE_FILES):
        given = {"transformer_path": str(draft.place.find(whole)), **given}
        draft.note(TAKEN, WHOLE, "base.transformer_path; what it does not hold comes from the flavour's own model")
        whole = HUB_IDS[flavour]
    elif whole:
        _note_source(draft, WHOLE, "base.pretrained_model_name_or_path", whole, swaps)
    else:
        whole = HUB_IDS[flavour]
        _note_source(draft, WHOLE, f"not given: {whole}", whole, swaps)
    for option, path in ((TRANSFORMER, "transformer_path"), (VAE, "vae_path")):
        if draft.given(option):
            _settle_part(draft, option, path, given, swaps)
    for path, file in given.items():
        draft.put(f"base.{path}", file)
    if any(name not in given for name in MODEL_FILE_FIELDS):
        draft.put(f"base.{WHOLE}", _where(draft, whole))


def _settle_part(draft: Draft, option: str, path: str, given: dict[str, str], swaps: Swaps) -> None:
    """The transformer or the VAE from a place of its own, unless the user gives a file."""
    source, subfolder = str(draft.options[option]).strip(), str(draft.options.get(SUBFOLDER) or "").strip()
    if path in given:
        return draft.note(OTHERWISE, option, f"base.{path} is the file that was given instead")
    if source.lower() == str(draft.options.get(WHOLE) or "").strip().lower():
        return draft.note(TAKEN, option, "the same place as the base, which it is taken from")
    found = _where(draft, source)
    if path == "transformer_path" and draft.given(SUBFOLDER) and (Path(found) / subfolder).is_dir():
        found = str(Path(found) / subfolder)
    given[path] = found
    _note_source(draft, option, f"base.{path}", source, swaps)
    if path == "transformer_path" and SUBFOLDER in draft.options:
        draft.note(IDLE, SUBFOLDER, "where a repository keeps its weights is found by looking")


def _where(draft: Draft, source: str) -> str:
    """A path where there is one of that name, else the hub id as it is."""
    found = draft.place.find(source)
    return str(found) if found.exists() or not _is_hub_id(source) else source


def _is_hub_id(source: str) -> bool:
    return source.count("/") == 1 and not source.startswith((".", "/", "~")) and not source.lower().endswith(SINGLE_FILES)


def _note_source(draft: Draft, option: str, text: str, source: str, swaps: Swaps) -> None:
    if draft.place.find(source).exists() or not _is_hub_id(source):
        return draft.note(TAKEN, option, text)
    if swaps.allow_download:
        return draft.note(TAKEN, option, f"{text}; it may be downloaded")
    mend = "give --transformer, --vae, --clip-l, --t5 and the tokenizers for files of yours, --base pico to try it, or "
    draft.note(OTHERWISE, option, f"{text}; only looked up in the hub's cache here: {mend}--allow-download")


def _settle_assistant(draft: Draft, flavour: str, swaps: Swaps) -> None:
    base, path = draft.parts["base"], str(draft.options.get("assistant_lora_path") or "").strip()
    is_off = is_on(draft.options.get("disable_assistant_lora"))
    if "disable_assistant_lora" in draft.options:
        draft.note(TAKEN, "disable_assistant_lora", "there is no assistant LoRA unless a file is given")
    if path and not is_off and not base.get("assistant_lora_path"):
        if draft.place.find(path).exists():
            base.put("assistant_lora_path", str(draft.place.find(path)))
            draft.note(TAKEN, "assistant_lora_path", "base.assistant_lora_path")
        else:
            draft.note(REFUSED, "assistant_lora_path", "there is no such file; give one with --assistant-lora")
    elif flavour == "schnell" and not is_off and not base.get("assistant_lora_path"):
        text = (
            "not given: the original downloads ostris/FLUX.1-schnell-training-adapter by itself; nothing is downloaded here, "
            "give the file with --assistant-lora, or train with flux_fast_schedule"
        )
        draft.note(OTHERWISE, "assistant_lora_path", text)
    elif path:
        draft.note(IDLE, "assistant_lora_path", "is switched off, or another file was given")
    if not base.get("assistant_lora_path"):
        for name in ("assistant_lora_strength", "assistant_lora_inference_strength"):
            base.drop(name)
