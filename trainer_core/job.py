"""The job: the only configuration there is.

A `TrainJob` is a frozen tree of plain values. JSON in, JSON out; it is written into the run folder before the first step and
reproduces the run alone. Each field states its default, meaning, unit and range here and nowhere else: node widgets, their
tooltips, and error messages are made from these fields. Names are those of SimpleTuner's FLUX options where it has one.

`job_file.py` reads and writes it and says what is wrong with one. No torch here: ComfyUI's nodes import this file.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

JOB_VERSION = 1

Flavour = Literal["pico", "dev", "krea", "schnell"]
LoraTarget = Literal["mmdit", "all", "all+ffs", "context", "context+ffs", "ai-toolkit", "tiny", "nano"]


class Spec(BaseModel):
    """A part of the job: immutable, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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


class DatasetSpec(Spec):
    """A folder of pictures with their captions."""

    id: str = Field("pictures", min_length=1, description="Name of this dataset in reports.")
    instance_data_dir: str = Field(description="Folder with the pictures, read with its sub-folders.", min_length=1)
    caption_strategy: Literal["textfile", "filename", "instanceprompt"] = Field(
        "textfile",
        description="textfile: NAME.txt beside NAME.png, the whole file is the caption. filename: the file's name, underscores as spaces. instanceprompt: instance_prompt for all.",
    )
    instance_prompt: str = Field("", description="The caption of every picture when caption_strategy is instanceprompt.")
    resolution: int = Field(
        0,
        ge=0,
        le=4096,
        description="Edge in pixels of the square whose area each picture is brought to; 0: the base's home resolution (1024; pico 64).",
    )
    repeats: int = Field(
        0, ge=0, le=100_000, description="Extra passes over this dataset in each epoch: 0 shows each picture once."
    )

    @model_validator(mode="after")
    def _prompt_where_needed(self) -> "DatasetSpec":
        if (self.caption_strategy == "instanceprompt") != bool(self.instance_prompt.strip()):
            raise ValueError("instance_prompt and caption_strategy 'instanceprompt' go together: give both or neither")
        return self


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
        description="Which layers: all attention (all), plus feed-forward (all+ffs), image side only (mmdit), text side only (context), everything incl. modulation (ai-toolkit), one or two single blocks (tiny, nano).",
    )
    lora_save_precision: Literal["bf16", "fp16", "fp32"] = Field(
        "bf16", description="Number format of the exported LoRA file; training itself keeps the adapter in float32."
    )


class TreadRoute(Spec):
    """One TREAD route: image tokens that skip a span of layers in training."""

    selection_ratio: float = Field(
        0.5, ge=0.0, lt=1.0, description="Share of the image tokens that skip the span, drawn anew each step."
    )
    start_layer_idx: int = Field(
        2,
        ge=-57,
        le=56,
        description="First skipped layer, counted over double then single blocks; negative counts from the end.",
    )
    end_layer_idx: int = Field(-2, ge=-57, le=56, description="Last skipped layer, inclusive; negative counts from the end.")


class OptimizerSpec(Spec):
    """How the adapter's weights move."""

    optimizer: Literal["adamw"] = Field("adamw", description="Optimiser. AdamW with float32 states.")
    learning_rate: float = Field(
        1e-4, gt=0.0, le=1.0, description="Step size. For a FLUX LoRA 1e-4 is a sound start, 1e-3 burns."
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "sine"
    ] = Field("constant_with_warmup", description="Course of the learning rate from the warm-up to the last step of the run.")
    lr_warmup_steps: int = Field(
        0, ge=0, le=100_000, description="Optimiser steps over which the learning rate rises from zero."
    )
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Memory of the gradient's mean.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Memory of the gradient's square.")
    adam_weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="Pull of the weights towards zero.")
    max_grad_norm: float = Field(1.0, gt=0.0, le=1e6, description="Largest gradient; see grad_clip_method.")
    grad_clip_method: Literal["norm", "value"] = Field(
        "norm", description="norm: the whole gradient is scaled down to length max_grad_norm. value: each number is cut at it."
    )
    lr_end: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Learning rate at the end of linear, cosine and polynomial, and at the low points of the others.",
    )
    lr_power: float = Field(1.0, gt=0.0, le=10.0, description="Power of the polynomial course; 1 is linear.")
    lr_num_cycles: int = Field(
        1, ge=1, le=1000, description="How often cosine_with_restarts starts again, or sine rises, over the run."
    )

    @model_validator(mode="after")
    def _ends_below_its_start(self) -> "OptimizerSpec":
        if self.lr_end > self.learning_rate:
            raise ValueError(f"lr_end {self.lr_end} is above learning_rate {self.learning_rate}; lower it")
        return self


class FlowSpec(Spec):
    """Which noise levels are trained, what guidance the model is told, and how its error is counted."""

    flow_sigmoid_scale: float = Field(
        1.0, gt=0.0, le=10.0, description="Spread of the noise levels: sigma = sigmoid(scale * normal). The default density."
    )
    flow_schedule_shift: float = Field(
        0.0,
        ge=0.0,
        le=100.0,
        description="Shift of the noise levels: above 1 trains composition more, below 1 detail; 0: none.",
    )
    flux_guidance_value: float = Field(
        1.0,
        ge=0.0,
        le=100.0,
        description="Guidance fed to the model in training, where it has the embedder. 1 keeps the distillation of dev.",
    )
    caption_dropout_probability: float = Field(
        0.0, ge=0.0, le=1.0, description="Share of the samples whose caption is replaced by the empty one."
    )
    flow_schedule_auto_shift: bool = Field(
        False, description="Shift by the number of image tokens as FLUX.1 dev samples: 1.88 at 512 px, 3.16 at 1024 px."
    )
    flow_use_uniform_schedule: bool = Field(False, description="Draw every noise level alike, instead of by the sigmoid.")
    flow_use_beta_schedule: bool = Field(False, description="Draw noise levels of a Beta density, instead of by the sigmoid.")
    flow_beta_schedule_alpha: float = Field(2.0, gt=0.0, le=100.0, description="Beta density: larger draws nearer to noise.")
    flow_beta_schedule_beta: float = Field(2.0, gt=0.0, le=100.0, description="Beta density: larger draws nearer to the image.")
    flow_custom_timesteps: tuple[float, ...] = Field(
        (), description="Noise levels to pick from, one a line, each from 0 (image) to 1 (noise); never shifted."
    )
    flux_fast_schedule: bool = Field(
        False, description="Pick from schnell's few noise levels, mostly pure noise; never shifted."
    )
    flux_guidance_mode: Literal["constant", "random-range"] = Field(
        "constant",
        description="constant: flux_guidance_value. random-range: anew for each sample, between flux_guidance_min and flux_guidance_max.",
    )
    flux_guidance_min: float = Field(0.0, ge=0.0, le=100.0, description="Lowest guidance of random-range.")
    flux_guidance_max: float = Field(4.0, ge=0.0, le=100.0, description="Highest guidance of random-range.")
    loss_type: Literal["l2", "huber", "smooth_l1"] = Field(
        "l2",
        description="How errors count: l2 by their square; huber and smooth_l1 let large ones, such as of odd pictures, count less.",
    )
    huber_schedule: Literal["snr", "exponential", "constant"] = Field(
        "snr",
        description="How huber_c depends on the noise level: snr and exponential are near l2 at the image and reach huber_c at noise.",
    )
    huber_c: float = Field(0.1, gt=0.0, le=100.0, description="Error at which huber and smooth_l1 turn from square to linear.")
    input_perturbation: float = Field(
        0.0, ge=0.0, le=1.0, description="Extra noise on the model's input alone, against overfitting; 0.1 is usual, 0: none."
    )
    input_perturbation_steps: int = Field(
        0, ge=0, le=10_000_000, description="Steps over which input_perturbation falls to 0; 0: it stays."
    )

    @model_validator(mode="after")
    def _one_density(self) -> "FlowSpec":
        on = [name for name in DENSITIES if getattr(self, name)]
        if len(on) > 1:
            raise ValueError(f"{' and '.join(on)} exclude each other; keep one")
        shifts = [name for name in ("flow_schedule_shift", "flow_schedule_auto_shift") if getattr(self, name)]
        if len(shifts) > 1:
            raise ValueError("flow_schedule_shift and flow_schedule_auto_shift exclude each other; set the shift to 0")
        unshifted = [name for name in on if name in ("flow_custom_timesteps", "flux_fast_schedule")]
        if unshifted and shifts:
            raise ValueError(f"{shifts[0]} has no effect with {unshifted[0]}, whose noise levels are as given; take one out")
        wrong = [sigma for sigma in self.flow_custom_timesteps if not 0 <= sigma <= 1]
        if wrong:
            raise ValueError(f"flow_custom_timesteps are noise levels from 0 to 1; got {wrong[0]}")
        if self.flux_guidance_min > self.flux_guidance_max:
            raise ValueError("flux_guidance_min is above flux_guidance_max; exchange them")
        return self


DENSITIES = ("flow_custom_timesteps", "flux_fast_schedule", "flow_use_uniform_schedule", "flow_use_beta_schedule")


class ValidationSpec(Spec):
    """The pictures made before, during and after training, always with the same seed."""

    validation_prompts: tuple[str, ...] = Field(
        (), description="Prompts to picture, one a line. Empty: the first captions of the dataset."
    )
    validation_negative_prompt: str = Field("", description="Negative prompt; used when validation_guidance_real is above 1.")
    validation_resolution: str = Field("", description="WIDTHxHEIGHT in pixels; empty: a square of the base's home resolution.")
    validation_num_inference_steps: int = Field(
        0, ge=0, le=1000, description="Sampler steps; 0: what suits the base (20; schnell 4)."
    )
    validation_guidance: float = Field(-1.0, ge=-1.0, le=100.0, description="Embedded guidance; -1: what suits the base (3.5).")
    validation_guidance_real: float = Field(
        -1.0, ge=-1.0, le=100.0, description="Real CFG, on above 1; -1: what suits the base (off; pico 3)."
    )
    validation_seed: int = Field(0, ge=0, le=2**63 - 1, description="Seed of the pictures' noise.")
    validation_step_interval: int = Field(
        0, ge=0, le=1_000_000, description="Make pictures every so many steps; 0: only before and after."
    )
    num_validation_images: int = Field(
        4,
        ge=0,
        le=1000,
        description="How many captions to picture when validation_prompts is empty; 0: no pictures at all.",
    )

    @model_validator(mode="after")
    def _readable_size(self) -> "ValidationSpec":
        if self.validation_resolution:
            parse_size(self.validation_resolution)
        return self


class TrainingSpec(Spec):
    """Length, batch, memory and saving."""

    max_train_steps: int = Field(1000, ge=1, le=10_000_000, description="Optimiser steps.")
    train_batch_size: int = Field(1, ge=1, le=1024, description="Samples in one forward pass.")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=1024, description="Forward passes per optimiser step; equals a batch that many times larger."
    )
    gradient_checkpointing: bool = Field(
        True, description="Recompute activations in the backward pass: much less memory, about a third more time."
    )
    checkpoint_step_interval: int = Field(
        250, ge=0, le=1_000_000, description="Save LoRA and state every so many steps; 0: only at the end and on stop."
    )
    checkpoints_total_limit: int = Field(3, ge=1, le=1000, description="How many of the newest checkpoints are kept.")
    seed: int = Field(42, ge=0, le=2**63 - 1, description="Seed of everything random in training.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: the first CUDA (or ROCm) card if there is one, else the CPU."
    )


class TrainJob(Spec):
    """Everything that one run needs to know."""

    version: Literal[1] = Field(JOB_VERSION, description="Version of this format.")
    name: str = Field(
        "my-lora",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$",
        description="Name of the LoRA: letters, digits, dot, dash, underscore.",
    )
    base: BaseModelSpec = BaseModelSpec()
    datasets: Annotated[tuple[DatasetSpec, ...], Field(min_length=1)]
    lora: LoraSpec = LoraSpec()
    routes: tuple[TreadRoute, ...] = ()
    optimizer: OptimizerSpec = OptimizerSpec()
    flow: FlowSpec = FlowSpec()
    validation: ValidationSpec = ValidationSpec()
    training: TrainingSpec = TrainingSpec()
    metadata: dict[str, str] = Field(
        {},
        description="Entries for the LoRA file's header, such as ComfyUI's workflow and prompt. They do not make it another run.",
    )

    @model_validator(mode="after")
    def _distinct_datasets(self) -> "TrainJob":
        ids = [dataset.id for dataset in self.datasets]
        repeated = sorted({name for name in ids if ids.count(name) > 1})
        if repeated:
            raise ValueError(f"datasets: the id {', '.join(map(repr, repeated))} is used twice; give each dataset its own")
        return self


def parse_size(text: str) -> tuple[int, int]:
    """'1024x768' -> (1024, 768), width and height in pixels; ValueError says what is wrong."""
    parts = text.lower().replace(" ", "").split("x")
    if len(parts) != 2 or not all(part.isdigit() for part in parts):
        raise ValueError(f"validation_resolution {text!r} is not a size; write it as WIDTHxHEIGHT, for instance 1024x768")
    width, height = int(parts[0]), int(parts[1])
    if min(width, height) < 16 or width % 16 or height % 16:
        raise ValueError(f"validation_resolution {text!r}: both edges must be multiples of 16 and at least 16")
    return width, height
