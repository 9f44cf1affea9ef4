"""What is known of a job before anything heavy is loaded.

Making a `Setup` reads headers and indexes pictures, no weights, and so finds every mistake of the user's in a second or two.
`flux-lora check` stops here.
"""

import logging
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from . import __version__
from .adapter.build import effective_alpha
from .adapter.targets import target_modules
from .data.batches import batches_per_epoch
from .data.index import Sample, count_buckets, index_datasets
from .errors import JobError
from .flux.files import ModelFiles, fingerprint, resolve_files
from .flux.flavours import FLAVOURS, Flavour
from .flux.load import FluxShape, empty_transformer, read_shape
from .job import TrainJob
from .optimizer_check import check_optimizer
from .optimizers import effective
from .run_dir import RunDir, read_json, write_json
from .tread import Span, resolve_routes
from .validation.sample import SamplerSettings, sampler_settings

log = logging.getLogger(__name__)

DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}


@dataclass(frozen=True)
class Setup:
    """A job with all that follows from it and from its files. `modules` are the adapted layers, `spans` the routes.

    `samples` are trained on, `eval_samples` only judged.
    """

    job: TrainJob
    flavour: Flavour
    files: ModelFiles
    shape: FluxShape
    spans: tuple[Span, ...]
    modules: tuple[str, ...]
    num_parameters: int
    samples: tuple[Sample, ...]
    eval_samples: tuple[Sample, ...]
    num_steps: int
    prompts: tuple[str, ...]
    sampler: SamplerSettings
    device: torch.device
    dtype: torch.dtype


def prepare(job: TrainJob) -> Setup:
    """Check the job against its files and pictures; JobError says what to mend."""
    device = pick_device(job.training.device)
    check_optimizer(job.optimizer, device)
    flavour = FLAVOURS[job.base.model_flavour]
    files = resolve_files(job.base)
    shape = read_shape(files.transformer)
    if job.flow.flux_attention_masked_training:
        log.warning(
            "the text's padding is hidden in training and in the run's samples, but ComfyUI's own sampler does not hide it"
        )
    skeleton = empty_transformer(shape)
    modules = target_modules(skeleton, job.lora.flux_lora_target)
    eval_ids = {dataset.id for dataset in job.datasets if dataset.dataset_type == "eval"}
    everything = index_datasets(job.datasets, flavour)
    samples = tuple(sample for sample in everything if sample.dataset_id not in eval_ids)
    if all(sample.is_regularisation for sample in samples):
        raise JobError("every dataset has is_regularisation_data, so the adapter would learn nothing; add pictures to train on")
    num_steps = count_steps(job, samples)
    spans = resolve_routes(job.routes, shape.num_double + shape.num_single, num_steps)
    captions = list(dict.fromkeys(sample.caption for sample in samples))
    return Setup(
        job=job,
        flavour=flavour,
        files=files,
        shape=shape,
        spans=spans,
        modules=tuple(modules),
        num_parameters=sum(job.lora.lora_rank * sum(skeleton.get_submodule(name).weight.shape) for name in modules),
        samples=samples,
        eval_samples=tuple(sample for sample in everything if sample.dataset_id in eval_ids),
        num_steps=num_steps,
        prompts=job.validation.validation_prompts or tuple(captions[: job.validation.num_validation_images]),
        sampler=sampler_settings(job.validation, flavour),
        device=device,
        dtype=DTYPES[job.base.mixed_precision],
    )


def count_steps(job: TrainJob, samples: Sequence[Sample]) -> int:
    """The run's length in optimiser steps; whole epochs are rounded up to a whole step."""
    training = job.training
    if training.max_train_steps:
        return training.max_train_steps
    batches = training.num_train_epochs * batches_per_epoch(samples, job.datasets, training.train_batch_size)
    return math.ceil(batches / training.gradient_accumulation_steps)


def pick_device(wish: str) -> torch.device:
    """'auto' is the first CUDA or ROCm card if there is one, else the CPU; JobError when a wanted card is not there."""
    available = torch.cuda.is_available()
    if wish == "cuda" and not available:
        raise JobError("training.device is 'cuda', but torch finds no CUDA or ROCm card here; choose 'auto' or 'cpu'")
    return torch.device("cuda" if available and wish != "cpu" else "cpu")


def write_manifest(setup: Setup, run_dir: RunDir) -> None:
    """What is really used: every default resolved, versions, files, adapted layers."""
    import diffusers
    import peft
    import transformers

    versions = {module.__name__: module.__version__ for module in (torch, diffusers, peft, transformers)}
    files = {
        name: {"path": str(path), "fingerprint": fingerprint(path) if path.is_file() else ""}
        for name, path in asdict(setup.files).items()
    }
    manifest = {
        "run_id": run_dir.run_id,
        "steps": setup.num_steps,
        "verified": read_json(run_dir.manifest_path).get("verified", {}) if run_dir.manifest_path.exists() else {},
        "versions": {"flux-lora": __version__, "python": platform.python_version(), **versions},
        "device": str(setup.device),
        "dtype": str(setup.dtype),
        "files": files,
        "base": asdict(setup.shape),
        "routes": [asdict(span) for span in setup.spans],
        "alpha": effective_alpha(setup.job.lora),
        "parameters": setup.num_parameters,
        "modules": list(setup.modules),
        "optimizer": effective(setup.job.optimizer),
        "pictures": len(setup.samples),
        "buckets": count_buckets(setup.samples),
        "sampler": asdict(setup.sampler),
        "prompts": list(setup.prompts),
    }
    write_json(run_dir.manifest_path, manifest)
