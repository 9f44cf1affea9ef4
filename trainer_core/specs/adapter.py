"""The adapter: its kind, size, layers and start."""

from typing import Literal

from pydantic import Field, model_validator

from .no_effect import LORA, refuse_idle
from .spec import Spec

LoraTarget = Literal["mmdit", "all", "all+ffs", "context", "context+ffs", "ai-toolkit", "tiny", "nano", "custom"]


class LoraSpec(Spec):
    """The adapter that is trained."""

    lora_rank: int = Field(
        16,
        ge=1,
        le=1024,
        description="Rank of the update: more can hold more and weighs more. 16 suits most subjects and styles.",
    )
    lora_alpha: float = Field(
        0.0,
        ge=0.0,
        le=4096.0,
        description="Strength of the update is alpha / rank. 0: the same as the rank, that is strength 1.",
    )
    flux_lora_target: LoraTarget = Field(
        "all",
        description="Which layers: all attention (all), plus feed-forward (all+ffs), image side only (mmdit), text side only (context), everything incl. modulation (ai-toolkit), one or two single blocks (tiny, nano), or peft_lora_target_modules (custom).",
    )
    lora_save_precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="Number format of the exported LoRA file; training itself keeps the adapter in float32."
    )
    lora_type: Literal["lora", "lokr", "loha"] = Field(
        "lora",
        description="lora: two thin matrices a layer. lokr: a Kronecker product, strong in a small file. loha: an elementwise product of two LoRAs.",
    )
    lora_dropout: float = Field(
        0.0, ge=0.0, lt=1.0, description="Share of the adapter's inputs that are zeroed at random in training; lora only."
    )
    peft_lora_target_modules: tuple[str, ...] = Field(
        (),
        description="With flux_lora_target custom: names of layers, one a line, or endings of names, such as attn.to_q or proj_out.",
    )
    lora_blocks: str = Field(
        "", description="Adapt only these blocks, for instance 'double 0-5, single 7, single 20'; empty: all."
    )
    rank_pattern: tuple[str, ...] = Field(
        (), description="Other ranks for some blocks, one line each, for instance 'single 0-9: 32'; a later line wins."
    )
    lora_init_type: Literal["default", "gaussian", "loftq", "olora", "pissa"] = Field(
        "default",
        description="How the LoRA starts: default and gaussian change nothing at first; olora, pissa (from the base's own directions) and loftq (from what quantisation lost) start nearer.",
    )
    init_lora: str = Field(
        "", description="A LoRA file to start from, in any naming that ComfyUI reads; rank and alpha are those of the file."
    )
    lokr_factor: int = Field(
        16,
        ge=-1,
        le=1024,
        description="LoKr on attention: size of the small factor; a larger one makes a smaller file. -1: square.",
    )
    lokr_factor_feed_forward: int = Field(
        8, ge=-1, le=1024, description="LoKr on feed-forward and modulation layers: size of the small factor. -1: square."
    )
    lokr_full_matrix: bool = Field(
        True, description="LoKr: keep the large factor whole. Off: it too is split, at lora_rank and lora_alpha."
    )

    @model_validator(mode="after")
    def _fitting_together(self) -> "LoraSpec":
        if (self.flux_lora_target == "custom") != bool(self.peft_lora_target_modules):
            raise ValueError("flux_lora_target 'custom' and peft_lora_target_modules go together: give both or neither")
        if self.lora_type != "lora":
            for field, neutral in (("lora_dropout", 0.0), ("lora_init_type", "default")):
                if getattr(self, field) != neutral:
                    raise ValueError(f"{field} is for lora_type 'lora'; with {self.lora_type!r} set it to {neutral!r}")
        if self.init_lora and self.lora_init_type != "default":
            raise ValueError("init_lora and lora_init_type both say where the LoRA starts; keep one")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "LoraSpec":
        refuse_idle(self, LORA)
        return self
