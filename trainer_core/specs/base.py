"""Which FLUX is trained on."""

from typing import Literal

from pydantic import Field, model_validator

from .spec import Spec

Flavour = Literal["pico", "dev", "krea", "schnell", "kontext", "fluxbooru", "libreflux"]
Precision = Literal[
    "no_change",
    "bf16",
    "int8-quanto",
    "int4-quanto",
    "int2-quanto",
    "fp8-quanto",
    "nf4-bnb",
    "int8-torchao",
    "fp8-torchao",
]
EIGHT_BIT_KEPT = ("int8-torchao", "fp8-torchao")
EncoderPrecision = Literal["no_change", "int8-quanto", "nf4-bnb"]


class BaseModelSpec(Spec):
    """Which FLUX to train on. The built-in base `pico` needs no files; every other flavour takes local files."""

    model_flavour: Flavour = Field(
        "pico",
        description="pico is the small FLUX that ships with the pack; the others are the FLUX.1 family and need your model files.",
    )
    transformer_path: str = Field(
        "",
        description="FLUX transformer: one .safetensors or .gguf file, or a diffusers folder; original (BFL) or diffusers naming.",
    )
    vae_path: str = Field("", description="FLUX VAE (ae.safetensors) as a file or a diffusers folder, or TAEF1.")
    clip_l_path: str = Field("", description="CLIP-L text encoder, a file or a diffusers folder.")
    t5_path: str = Field("", description="T5 v1.1 XXL encoder (fp16, fp8, scaled fp8 or GGUF), a file or a diffusers folder.")
    clip_tokenizer_path: str = Field("", description="Folder (or tokenizer.json) of the CLIP tokenizer. Nothing is downloaded.")
    t5_tokenizer_path: str = Field("", description="Folder (or tokenizer.json) of the T5 tokenizer. Nothing is downloaded.")
    mixed_precision: Literal["bf16", "no"] = Field(
        "bf16",
        description="Number format of the frozen base and the activations: bf16, or no for float32. "
        "The adapter's own numbers are always float32.",
    )
    assistant_lora_path: str = Field(
        "",
        description="A frozen LoRA that helps in training and is left out of pictures, such as the training adapter of schnell.",
    )
    assistant_lora_strength: float = Field(1.0, ge=-10.0, le=10.0, description="Strength of the assistant LoRA in training.")
    assistant_lora_inference_strength: float = Field(
        0.0, ge=-10.0, le=10.0, description="Strength of the assistant LoRA in the pictures; 0: they are made without it."
    )

    pretrained_model_name_or_path: str = Field(
        "",
        description="A whole FLUX in one place: a diffusers folder, a checkpoint with encoders and VAE inside, or a hub id. "
        "Whatever is not named by a path of its own is taken from it.",
    )
    allow_download: bool = Field(False, description="Hub ids may be downloaded. Without it, nothing touches the network.")
    base_model_precision: Precision = Field(
        "no_change",
        description="Number format of the frozen base: no_change keeps that of mixed_precision; int8 halves its memory, "
        "nf4 quarters it.",
    )
    text_encoder_1_precision: EncoderPrecision = Field(
        "no_change", description="Number format of CLIP-L while captions are encoded."
    )
    text_encoder_2_precision: EncoderPrecision = Field(
        "no_change", description="Number format of T5 while captions are encoded: int8 halves its memory."
    )
    quantize_via: Literal["accelerator", "cpu"] = Field(
        "accelerator",
        description="Where each block is quantised while it is read: on the card (fast), or on the CPU for the smallest cards.",
    )
    offload_during_startup: bool = Field(
        False,
        description="Put each encoder on the card only while it works, so that the two text encoders are never there together.",
    )
    vae_enable_tiling: bool = Field(False, description="Encode and decode large pictures in tiles: less memory, faint seams.")
    vae_enable_slicing: bool = Field(False, description="Encode and decode the pictures of a batch one by one: less memory.")
    blocks_to_swap: int = Field(
        0,
        ge=0,
        le=57,
        description="How many of the 57 blocks of the frozen base wait in RAM and visit the card: less memory, slower steps.",
    )
    modulation_offload: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Keep the modulation layers (27 % of the base) off the card and feed the blocks from values computed ahead. "
        "auto: where there is a card and the adapter does not train them.",
    )
    attention_mechanism: Literal["diffusers", "flash", "xformers", "sageattention"] = Field(
        "diffusers",
        description="diffusers is torch's own attention. sageattention has no gradient, so it serves only the pictures.",
    )
    vae_batch_size: int = Field(
        1, ge=1, le=64, description="Pictures of one bucket that go through the VAE together when the dataset is encoded."
    )
    preview_decoder_path: str = Field(
        "",
        description="TAEF1's decoder (taef1_decoder.safetensors), which shows pictures while they are made; empty: they are not shown.",
    )

    quantized_matmul: bool = Field(
        False,
        description="Multiply in 8 bits too, forward and backward: faster on cards from Ampere (int8-torchao) or Ada (fp8-torchao) on, "
        "a little less exact. Needs one of these two.",
    )

    @model_validator(mode="after")
    def _eight_bits_where_kept(self) -> "BaseModelSpec":
        if self.quantized_matmul and self.base_model_precision not in EIGHT_BIT_KEPT:
            raise ValueError(
                f"quantized_matmul multiplies torchao's 8-bit numbers, and base_model_precision is {self.base_model_precision!r}; "
                f"choose {' or '.join(map(repr, EIGHT_BIT_KEPT))}, or turn it off"
            )
        return self

    @model_validator(mode="after")
    def _one_format(self) -> "BaseModelSpec":
        if self.base_model_precision == "bf16" and self.mixed_precision != "bf16":
            raise ValueError("base_model_precision 'bf16' needs mixed_precision 'bf16'; for float32 choose 'no_change'")
        return self

    @model_validator(mode="after")
    def _files_where_needed(self) -> "BaseModelSpec":
        given = [name for name in (*MODEL_FILE_FIELDS, WHOLE_MODEL_FIELD) if getattr(self, name)]
        if self.model_flavour == "pico" and given:
            raise ValueError(f"model_flavour 'pico' brings its own files; remove {', '.join(given)} or choose another flavour")
        missing = [name for name in MODEL_FILE_FIELDS if name not in given]
        if self.model_flavour != "pico" and missing and not self.pretrained_model_name_or_path:
            raise ValueError(f"model_flavour {self.model_flavour!r} needs {', '.join(missing)}, or {WHOLE_MODEL_FIELD} for all")
        return self


WHOLE_MODEL_FIELD = "pretrained_model_name_or_path"
MODEL_FILE_FIELDS = (
    "transformer_path",
    "vae_path",
    "clip_l_path",
    "t5_path",
    "clip_tokenizer_path",
    "t5_tokenizer_path",
)
