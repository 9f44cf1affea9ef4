"""What is known of a job before anything heavy is loaded.

Making a `Setup` reads headers and indexes pictures, no weights, and so finds every mistake of the user's in a second or two.
`flux-lora check` stops here.
"""

import logging
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from . import __version__
from .adapter.dialects import read_adapter
from .adapter.initial import initial_factors, initial_parts
from .adapter.plan import AdaptedModule, AdapterPlan, plan_adapter
from .adapter.starts import Parts
from .course import check_turns, count_steps, order_of
from .cpu_speed import bf16_slowdown
from .data.index import Progress, count_buckets, index_datasets
from .data.report import group_reasons
from .data.sample import Index, Rejected, Sample
from .data.small_buckets import settle_small_buckets
from .errors import JobError
from .file_names import expanded
from .flavour_check import check_flavour, flow_of
from .flux.attention import check_attention, check_place
from .flux.compiling import check_compiling, missing_compiler, pays
from .flux.eight_bit import check_products
from .flux.files import ModelFiles, fingerprint
from .flux.flavours import FLAVOURS, Flavour
from .flux.load import FluxShape, empty_transformer, read_shape
from .flux.modulation import is_modulation
from .flux.quantize import WHOLE, check_kernels, check_precision
from .flux.resolve import resolve_files
from .flux.text import EncoderFormat
from .idle import warn_of_idle
from .job import TrainJob
from .optimizer_check import check_optimizer
from .optimizers import effective
from .run_dir import RUN_FOLDER_VERSION, RunDir
from .specs.base import BaseModelSpec
from .specs.flow import FlowSpec
from .specs.prompts import parse_library
from .trackers import check_trackers
from .tread import Span, resolve_routes
from .validation.held_out import set_aside
from .validation.previews import find_decoder
from .validation.sample import SamplerSettings, sampler_settings
from .validation.shots import Shot, make_shots, to_data
from .validation.starts import Start, examples_of, starts_at
from .writing import Damaged, read_sealed, write_sealed

log = logging.getLogger(__name__)

MAX_SLOWDOWN = 2.0  # of bf16, before it is worth a warning
MAX_NAMED = 5  # files in a warning
PIXELS_A_TOKEN = 16 * 16
PRECISION_FIELDS = ("base_model_precision", "text_encoder_1_precision", "text_encoder_2_precision")
DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}


@dataclass(frozen=True)
class Setup:
    """A job with all that follows from it and from its files. `flow` is the job's with what its flavour settles, `initial` are
    the parts of init_lora, `spans` the routes; `samples` are trained on, `eval_samples` only judged; `starts` are what pictures
    start from, in turn; `num_recomputed` is how many blocks the memory there is asks to recompute, where that was found out
    (`plan/recomputing.py`).
    """

    job: TrainJob
    flow: FlowSpec
    flavour: Flavour
    files: ModelFiles
    shape: FluxShape
    spans: tuple[Span, ...]
    adapter: AdapterPlan
    initial: dict[str, Parts]
    samples: tuple[Sample, ...]
    eval_samples: tuple[Sample, ...]
    rejected: tuple[Rejected, ...]
    num_steps: int
    shots: tuple[Shot, ...]
    sampler: SamplerSettings
    device: torch.device
    dtype: torch.dtype
    preview_decoder: Path | None = None
    num_recomputed: int | None = None
    starts: tuple[Start, ...] = ()

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted layers."""
        return self.adapter.names

    @property
    def modulation_on_host(self) -> bool:
        """Whether the modulation layers stay in host memory: where it is wished for, or of use and possible."""
        wish = self.job.base.modulation_offload
        return wish == "on" or (wish == "auto" and self.device.type != "cpu" and not _trains_modulation(self.adapter))

    @property
    def recomputed_layers(self) -> tuple[int, ...]:
        """The blocks that are recomputed in the backward pass. The first ones, where memory says how many: their turn comes
        last, when what the others kept is gone."""
        training, layers = self.job.training, tuple(range(self.shape.num_double + self.shape.num_single))
        if not training.gradient_checkpointing:
            return ()
        return (
            layers[:: training.gradient_checkpointing_interval]
            if training.gradient_checkpointing_interval
            else layers[: self.num_recomputed]
        )

    @property
    def compiles(self) -> bool:
        """Whether the blocks are compiled: a matter of the job and the device alone, so that a resumed run does the same."""
        wish = self.job.training.torch_compile
        return wish == "on" or (
            wish == "auto"
            and self.job.base.blocks_to_swap == 0
            and pays(self.num_steps * self._operations_a_step, self.device)
            and missing_compiler(self.device) is None
        )

    @property
    def _operations_a_step(self) -> float:
        """Roughly: each token meets 12 matrices of the width in a block, forward and backward."""
        training = self.job.training
        pixels = sum(sample.bucket.width * sample.bucket.height for sample in self.samples) / len(self.samples)
        tokens = self.flavour.t5_max_length + pixels / PIXELS_A_TOKEN
        matrices = 12 * (self.shape.num_double + self.shape.num_single) * self.shape.width**2
        return 4 * matrices * tokens * training.train_batch_size * training.gradient_accumulation_steps

    @property
    def encoding(self) -> EncoderFormat:
        """The formats in which captions are encoded."""
        return encoding_of(self.job.base)

    @property
    def num_parameters(self) -> int:
        return self.adapter.num_parameters


def encoding_of(base: BaseModelSpec) -> EncoderFormat:
    """The formats in which this base's captions are encoded."""
    return EncoderFormat(DTYPES[base.mixed_precision], base.text_encoder_1_precision, base.text_encoder_2_precision)


def trigger_word_of(job: TrainJob) -> str:
    """What <token> stands for in prompts: the first trigger word of the datasets, or nothing."""
    return next((dataset.trigger_word.strip() for dataset in job.datasets if dataset.trigger_word.strip()), "")


def prepare(job: TrainJob, cache_dir: Path | None = None, progress: Progress = lambda done, total: None) -> Setup:
    """Check the job against its files and pictures; JobError says what to mend. `progress` is that of looking at the pictures,
    and what was learned of them is remembered below `cache_dir`."""
    device = pick_device(job.training.device)
    check_optimizer(job.optimizer, device)
    check_compiling(job.training.torch_compile, device)
    check_trackers(job.training)
    if job.validation.evaluation_type == "clip":
        from .validation.clip_score import check_clip

        name = job.validation.pretrained_evaluation_model_name_or_path.strip()
        check_clip(name, allow_download=job.base.allow_download)
    flavour = FLAVOURS[job.base.model_flavour]
    for field in PRECISION_FIELDS:
        check_precision(getattr(job.base, field), f"base.{field}")
    check_kernels(job.base.base_model_precision, "base.base_model_precision", device)
    if job.base.quantized_matmul:
        check_products(job.base, device)
    flow = flow_of(job)
    masked = flow.flux_attention_masked_training
    check_attention(job.base.attention_mechanism, masked=masked, precision=job.base.base_model_precision)
    check_place(job.base.attention_mechanism, device, DTYPES[job.base.mixed_precision])
    warn_of_slow_bf16(device, DTYPES[job.base.mixed_precision])
    files = resolve_files(job.base)
    shape = read_shape(files.transformer)
    check_flavour(job, files, shape)
    if masked:
        log.warning(
            "the text's padding is hidden in training and in the run's samples, but ComfyUI's own sampler does not hide it"
        )
    given, initial = read_initial(job, shape)
    quantised = job.base.base_model_precision not in WHOLE
    adapter = plan_adapter(empty_transformer(shape), job.lora, given, quantised=quantised)
    eval_ids = {dataset.id for dataset in job.datasets if dataset.dataset_type == "eval"}
    if job.base.modulation_offload == "on" and _trains_modulation(adapter):
        raise JobError(
            f"base.modulation_offload is 'on', but lora.flux_lora_target {job.lora.flux_lora_target!r} trains modulation "
            "layers, which must then be on the card; set it to 'auto', or choose another target"
        )
    check_memory_options(job, shape)
    index = index_datasets(job.datasets, flavour, cache_dir, progress)
    samples = tuple(sample for sample in index.samples if sample.dataset_id not in eval_ids)
    if not samples:
        raise JobError("every dataset to train on is disabled; switch one on")
    samples, held_out = set_aside(samples, job.validation.num_held_out)
    judged = (*(sample for sample in index.samples if sample.dataset_id in eval_ids), *held_out)
    settled = settle_small_buckets(Index(samples, index.rejected), job.datasets, job.training.train_batch_size)
    samples = settled.samples
    for reason, paths in group_reasons(settled.rejected).items():
        names = ", ".join(map(str, paths[:MAX_NAMED])) + (", ..." if len(paths) > MAX_NAMED else "")
        log.warning("left out of the training, %d file%s: %s: %s", len(paths), "s" * (len(paths) > 1), names, reason)
    if all(sample.is_regularisation for sample in samples):
        raise JobError("every dataset has is_regularisation_data, so the adapter would learn nothing; add pictures to train on")
    num_steps = count_steps(job, order_of(job, samples))
    check_turns(job, samples, num_steps)
    spans = resolve_routes(job.routes, shape.num_double + shape.num_single, num_steps)
    captions, starts = pictured(job, samples, judged)
    shots = make_shots(job.validation, flavour, captions, trigger_word_of(job), starts)
    sampler = sampler_settings(job.validation, flavour)
    warn_of_idle(job, shape, sampler, len(shots))
    return Setup(
        job=job,
        flow=flow,
        flavour=flavour,
        files=files,
        shape=shape,
        spans=spans,
        adapter=adapter,
        initial=initial,
        samples=samples,
        eval_samples=tuple(sample if job.validation.eval_masked else sample._replace(mask=None) for sample in judged),
        rejected=settled.rejected,
        num_steps=num_steps,
        shots=shots,
        sampler=sampler,
        device=device,
        dtype=DTYPES[job.base.mixed_precision],
        preview_decoder=find_decoder(job.base, files),
        starts=tuple(starts),
    )


def pictured(job: TrainJob, samples: Sequence[Sample], judged: Sequence[Sample]) -> tuple[list[str], Sequence[Start]]:
    """The captions that are pictured where the job names no prompt, and what pictures start from."""
    spec = job.validation
    num_named = len(spec.validation_prompts) + len(parse_library(spec.user_prompt_library))
    examples = examples_of(samples, judged, max(num_named, spec.num_validation_images, 1))
    own = [example.start for example in examples if example.start is not None]
    return [example.caption for example in examples], starts_at(spec.validation_reference_path) or own


def _trains_modulation(adapter: AdapterPlan) -> bool:
    return any(is_modulation(name) for name in adapter.names)


def check_memory_options(job: TrainJob, shape: FluxShape) -> None:
    """JobError, or a warning, where an option that saves memory cannot."""
    num_blocks = shape.num_double + shape.num_single
    if job.base.blocks_to_swap > num_blocks:
        raise JobError(
            f"base.blocks_to_swap is {job.base.blocks_to_swap}, but this base has {num_blocks} blocks; give at most that"
        )
    if job.base.vae_enable_slicing and job.base.vae_batch_size == 1:
        log.warning("base.vae_enable_slicing has no effect: with vae_batch_size 1 pictures go through the VAE one at a time")


def read_initial(job: TrainJob, shape: FluxShape) -> tuple[dict[str, AdaptedModule], dict[str, Parts]]:
    """What init_lora settles: layers with their rank and alpha, and the parts to start from. JobError names a wrong file,
    and one of the assistant's."""
    if job.base.assistant_lora_path:
        read_adapter(expanded(job.base.assistant_lora_path), shape)
    if not job.lora.init_lora:
        return {}, {}
    given, initial = initial_parts(initial_factors(expanded(job.lora.init_lora), shape, job.lora.lora_type))
    log.warning("%d layers start from init_lora, with the rank and alpha that they have in that file", len(given))
    return given, initial


def pick_device(wish: str) -> torch.device:
    """'auto' is the first CUDA or ROCm card if there is one, else the CPU; JobError when a wanted card is not there."""
    available = torch.cuda.is_available()
    if wish == "cuda" and not available:
        raise JobError("training.device is 'cuda', but torch finds no CUDA or ROCm card here; choose 'auto' or 'cpu'")
    return torch.device("cuda" if available and wish != "cpu" else "cpu")


def warn_of_slow_bf16(device: torch.device, dtype: torch.dtype) -> None:
    """Say so where the processor trains in a format that it has to emulate."""
    if device.type == "cpu" and dtype == torch.bfloat16 and (slowdown := bf16_slowdown()) > MAX_SLOWDOWN:
        log.warning(
            "this processor computes bf16 %.0f times as slowly as float32; with base.mixed_precision 'no' the base takes twice "
            "the memory and each step much less time",
            slowdown,
        )


def write_manifest(setup: Setup, run_dir: RunDir, *, processes: int = 1) -> None:
    """What is really used: every default resolved, versions, files, adapted layers, and how many processes share the steps."""
    import diffusers
    import peft
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, diffusers, peft, transformers)}
    files = {name: {"path": str(path), "fingerprint": fingerprint(path)} for name, path in asdict(setup.files).items()}
    manifest = {
        "version": RUN_FOLDER_VERSION,
        "run_id": run_dir.run_id,
        "job": setup.job.model_dump(mode="json", exclude={"metadata"}),
        "steps": setup.num_steps,
        "verified": _verified(run_dir),
        "versions": {"flux-lora": __version__, "python": platform.python_version(), **versions},
        "device": str(setup.device),
        "processes": processes,
        "dtype": str(setup.dtype),
        "files": files,
        "base": asdict(setup.shape),
        "modulation_on_host": setup.modulation_on_host,
        "recomputed_blocks": list(setup.recomputed_layers),
        "compiled": setup.compiles,
        "routes": [asdict(span) for span in setup.spans],
        "adapter": setup.adapter.summary(),
        "parameters": setup.num_parameters,
        "modules": list(setup.modules),
        "optimizer": effective(setup.job.optimizer),
        "flow": setup.flow.model_dump(mode="json"),
        "pictures": len(setup.samples),
        "buckets": count_buckets(setup.samples),
        "rejected": [{"dataset": name, "path": str(path), "reason": reason} for name, path, reason in setup.rejected],
        "sampler": asdict(setup.sampler),
        "previews": str(setup.preview_decoder) if setup.preview_decoder else "none: base.preview_decoder_path is empty",
        "shots": [to_data(shot) for shot in setup.shots],
    }
    write_sealed(run_dir.manifest_path, manifest)


def _verified(run_dir: RunDir) -> dict[str, str]:
    """What the manifest so far says of LoRA files that were read back; nothing where it cannot be believed."""
    try:
        return read_sealed(run_dir.manifest_path)["verified"]
    except (FileNotFoundError, Damaged):
        return {}
