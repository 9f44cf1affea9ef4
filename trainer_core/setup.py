"""What is known of a job before anything heavy is loaded.

Making a `Setup` reads headers and indexes pictures, no weights, and so finds every mistake of the user's in a second or two.
`flux-lora check` stops here.
"""

import platform
from dataclasses import asdict, dataclass

import torch

from . import __version__
from .adapter.plan import AdapterPlan, plan_adapter
from .data.index import Sample, count_buckets, index_datasets
from .errors import JobError
from .flux.files import ModelFiles, fingerprint, resolve_files
from .flux.flavours import FLAVOURS, Flavour
from .flux.load import FluxShape, empty_transformer, read_shape
from .job import TrainJob
from .run_dir import RunDir, write_json
from .tread import Span, resolve_routes
from .validation.sample import SamplerSettings, sampler_settings

DTYPES = {"bf16": torch.bfloat16, "no": torch.float32}


@dataclass(frozen=True)
class Setup:
    """A job with all that follows from it and from its files. `spans` are the routes."""

    job: TrainJob
    flavour: Flavour
    files: ModelFiles
    shape: FluxShape
    spans: tuple[Span, ...]
    adapter: AdapterPlan
    samples: tuple[Sample, ...]
    prompts: tuple[str, ...]
    sampler: SamplerSettings
    device: torch.device
    dtype: torch.dtype

    @property
    def modules(self) -> tuple[str, ...]:
        """The adapted layers."""
        return self.adapter.names

    @property
    def num_parameters(self) -> int:
        return self.adapter.num_parameters


def prepare(job: TrainJob) -> Setup:
    """Check the job against its files and pictures; JobError says what to mend."""
    flavour = FLAVOURS[job.base.model_flavour]
    files = resolve_files(job.base)
    shape = read_shape(files.transformer)
    spans = resolve_routes(job.routes, shape.num_double + shape.num_single)
    adapter = plan_adapter(empty_transformer(shape), job.lora)
    samples = index_datasets(job.datasets, flavour)
    captions = list(dict.fromkeys(sample.caption for sample in samples))
    return Setup(
        job=job,
        flavour=flavour,
        files=files,
        shape=shape,
        spans=spans,
        adapter=adapter,
        samples=tuple(samples),
        prompts=job.validation.validation_prompts or tuple(captions[: job.validation.num_validation_images]),
        sampler=sampler_settings(job.validation, flavour),
        device=pick_device(job.training.device),
        dtype=DTYPES[job.base.mixed_precision],
    )


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
        "versions": {"flux-lora": __version__, "python": platform.python_version(), **versions},
        "device": str(setup.device),
        "dtype": str(setup.dtype),
        "files": files,
        "base": asdict(setup.shape),
        "routes": [asdict(span) for span in setup.spans],
        "adapter": setup.adapter.summary(),
        "parameters": setup.num_parameters,
        "modules": list(setup.modules),
        "pictures": len(setup.samples),
        "buckets": count_buckets(setup.samples),
        "sampler": asdict(setup.sampler),
        "prompts": list(setup.prompts),
    }
    write_json(run_dir.manifest_path, manifest)
