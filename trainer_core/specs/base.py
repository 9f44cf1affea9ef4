"""Which FLUX is trained on."""

from typing import Literal

from pydantic import Field, model_validator

from .spec import Spec

Flavour = Literal["pico", "dev", "krea", "schnell"]


class BaseModelSpec(Spec):
    """Which FLUX to train on. The built-in base `pico` needs no files; every other flavour takes local files."""

    model_flavour: Flavour = Field(
        "pico",
        description="pico is the small FLUX that ships with the pack; dev, krea and schnell need your model files.",
    )
    transformer_path: str = Field(
        "", description="FLUX transformer as one .safetensors file, in the original (BFL) or the diffusers naming."
    )
    vae_path: str = Field("", description="FLUX VAE as one .safetensors file (ae.safetensors), or TAEF1.")
    clip_l_path: str = Field("", description="CLIP-L text encoder, one .safetensors file.")
    t5_path: str = Field("", description="T5 v1.1 XXL encoder, one .safetensors file.")
    clip_tokenizer_path: str = Field("", description="Folder (or tokenizer.json) of the CLIP tokenizer. Nothing is downloaded.")
    t5_tokenizer_path: str = Field("", description="Folder (or tokenizer.json) of the T5 tokenizer. Nothing is downloaded.")
    mixed_precision: Literal["bf16", "no"] = Field(
        "bf16",
        description="Number format of the frozen base and the activations: bf16, or no for float32. The adapter is always float32.",
    )
    assistant_lora_path: str = Field(
        "",
        description="A frozen LoRA that helps in training and is left out of pictures, such as the training adapter of schnell.",
    )
    assistant_lora_strength: float = Field(1.0, ge=-10.0, le=10.0, description="Strength of the assistant LoRA in training.")
    assistant_lora_inference_strength: float = Field(
        0.0, ge=-10.0, le=10.0, description="Strength of the assistant LoRA in the pictures; 0: they are made without it."
    )

    @model_validator(mode="after")
    def _files_where_needed(self) -> "BaseModelSpec":
        given = [name for name in MODEL_FILE_FIELDS if getattr(self, name)]
        if self.model_flavour == "pico" and given:
            raise ValueError(f"model_flavour 'pico' brings its own files; remove {', '.join(given)} or choose another flavour")
        missing = [name for name in MODEL_FILE_FIELDS if name not in given]
        if self.model_flavour != "pico" and missing:
            raise ValueError(f"model_flavour {self.model_flavour!r} needs {', '.join(missing)}")
        return self


MODEL_FILE_FIELDS = (
    "transformer_path",
    "vae_path",
    "clip_l_path",
    "t5_path",
    "clip_tokenizer_path",
    "t5_tokenizer_path",
)
