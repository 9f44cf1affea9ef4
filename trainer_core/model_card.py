"""What goes to the hub with a LoRA: its model card, made of what the run knows, and the files beside it.

The folder is made first and sent second, so what is published can be looked at before. The LoRA's header loses what is nobody
else's business: the job keeps the names of files but not where they lie, and the graph stays at home unless it is asked for.
"""

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from .adapter.header import metadata_of, with_metadata
from .errors import JobError
from .flux.flavours import FLAVOURS, Flavour
from .flux.licences import LICENCES, Licence, strictest
from .importers.simpletuner_model import HUB_IDS
from .job import TrainJob
from .job_paths import HUB_ID, PATH_FIELDS
from .modelspec import architectures_of, trigger_phrase_of
from .run_dir import RunDir
from .saved import find_lora
from .writing import write_atomically

MOST_SAMPLES = 12
GRAPH = ("workflow", "prompt")
SHOWN = (  # of the job: rows of the card
    ("adapter", lambda job: job.lora.lora_type),
    ("rank", lambda job: job.lora.lora_rank),
    ("layers", lambda job: job.lora.flux_lora_target),
    ("optimiser", lambda job: job.optimizer.optimizer),
    ("learning rate", lambda job: f"{job.optimizer.learning_rate:g}"),
    ("course", lambda job: job.optimizer.lr_scheduler),
    ("batch size", lambda job: job.training.train_batch_size),
    ("gradient accumulation", lambda job: job.training.gradient_accumulation_steps),
    ("precision of the base", lambda job: job.base.base_model_precision),
    ("seed", lambda job: job.training.seed),
)


class Sample(NamedTuple):
    """A picture of the card: its path in the repository, and its prompt."""

    file: str
    prompt: str


def prepare(run_dir: RunDir, which: str, folder: Path, *, with_graph: bool = False) -> Path:
    """Write all that is published into an empty folder, and return it. JobError where the run has no such LoRA."""
    if folder.exists() and any(folder.iterdir()):
        raise JobError(f"{folder} is not empty; give a new folder")
    job, lora = run_dir.job(), find_lora(run_dir, which)
    folder.mkdir(parents=True, exist_ok=True)
    data = lora.path.read_bytes()
    metadata = public_metadata(metadata_of(data), with_graph=with_graph)
    write_atomically(folder / lora.path.name, with_metadata(data, metadata))
    samples = []
    for path, prompt in _pictures(run_dir)[:MOST_SAMPLES]:
        place = folder / "samples" / path.name
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, place)
        samples.append(Sample(f"samples/{path.name}", prompt))
    card = model_card(job, lora.path.name, lora.step, samples, num_pictures(run_dir))
    write_atomically(folder / "README.md", card.encode("utf-8", "backslashreplace"))
    return folder


def public_metadata(metadata: dict[str, str], *, with_graph: bool) -> dict[str, str]:
    """The header for others: paths cut to names, the graph only where it is wanted."""
    kept = {name: text for name, text in metadata.items() if with_graph or name not in GRAPH}
    if "flux_lora.job" in kept:
        kept["flux_lora.job"] = json.dumps(without_folders(json.loads(kept["flux_lora.job"])), ensure_ascii=False)
    return kept


def without_folders(data: Any) -> Any:
    """A job's data with every path cut to the name that it ends in; a hub id is none."""
    names = {field for fields in PATH_FIELDS.values() for field in fields}
    if isinstance(data, list):
        return [without_folders(entry) for entry in data]
    if not isinstance(data, dict):
        return data
    return {name: _last(value) if name in names else without_folders(value) for name, value in data.items()}


def model_card(job: TrainJob, lora_name: str, step: int, samples: list[Sample], pictures: int) -> str:
    """README.md of the repository: what the hub reads at the top, then what people read."""
    flavour, trigger = FLAVOURS[job.base.model_flavour], trigger_phrase_of(job)
    licence = LICENCES[strictest(architectures_of(job, flavour))]
    said, title = job.publishing, job.publishing.title.strip() or job.name
    parts = [
        _front_matter(job, licence, trigger, samples),
        f"# {title}",
        said.description.strip() or f"A {job.lora.lora_type} for {_base(job)}.",
        "<Gallery />" if samples else "",
        f"## Trigger\n\nSay `{trigger}` in the prompt." if trigger else "",
        _usage(job, lora_name, flavour),
        _settings(job, step, pictures),
        f"## Licence\n\n{licence.shown}: that of the base it was trained on.",
        said.model_card_note.strip(),
        "Trained with FLUX LoRA Studio.",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def num_pictures(run_dir: RunDir) -> int:
    return int(json.loads(run_dir.manifest_path.read_text(encoding="utf-8"))["pictures"])


def _front_matter(job: TrainJob, licence: Licence, trigger: str, samples: list[Sample]) -> str:
    """YAML, whose strings may be written as JSON's."""
    own = [tag.strip() for tag in job.publishing.tags.split(",") if tag.strip()]
    tags = list(dict.fromkeys(["text-to-image", "diffusers", "lora", "flux", "template:sd-lora", *own]))
    lines = [f"license: {licence.id}"]
    if licence.link:
        lines += [f"license_name: {licence.name}", f"license_link: {licence.link}"]
    if base := HUB_IDS.get(job.base.model_flavour):
        lines += [f"base_model: {base}", "base_model_relation: adapter"]
    lines += ["pipeline_tag: text-to-image", f"tags: {json.dumps(tags, ensure_ascii=False)}"]
    lines += [f"instance_prompt: {json.dumps(trigger, ensure_ascii=False)}"] if trigger else []
    lines += ["widget:"] if samples else []
    for sample in samples:
        lines += [
            f"- text: {json.dumps(sample.prompt or '-', ensure_ascii=False)}",
            f"  output: {{url: {json.dumps(sample.file)}}}",
        ]
    return "\n".join(["---", *lines, "---"])


def _usage(job: TrainJob, lora_name: str, flavour: Flavour) -> str:
    sampler, edge = flavour.sampler, flavour.home_resolution
    suits = [f"guidance {sampler.guidance:g}"] if sampler.guidance else []
    suits += [f"{sampler.num_steps} steps", f"{edge} x {edge} pixels"]
    comfyui = f"ComfyUI: put `{lora_name}` into `models/loras` and load it with *Load LoRA*, at strength 1."
    diffusers = f'diffusers: `pipeline.load_lora_weights(REPOSITORY, weight_name="{lora_name}")`'
    if job.lora.lora_type != "lora":
        diffusers = f"diffusers reads no {job.lora.lora_type}; `flux-lora resize` makes a LoRA of it."
    return f"## Use\n\n{comfyui} The base likes {', '.join(suits)}.\n\n{diffusers}"


def _settings(job: TrainJob, step: int, pictures: int) -> str:
    rows = [("base", _base(job)), ("steps", step), ("pictures", pictures), *((name, read(job)) for name, read in SHOWN)]
    return "## Settings\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows)


def _base(job: TrainJob) -> str:
    return HUB_IDS.get(job.base.model_flavour, job.base.model_flavour)


def _pictures(run_dir: RunDir) -> list[tuple[Path, str]]:
    """The last pictures of the finished run, each with its prompt."""
    result, manifest = run_dir.result(), json.loads(run_dir.manifest_path.read_text(encoding="utf-8"))
    prompts = {shot["name"]: shot["prompt"] for shot in manifest["shots"]}
    paths = [Path(path) for path in result["samples"]] if result else []
    return [(path, prompts.get(path.stem, "")) for path in paths if path.is_file()]


def _last(value: Any) -> Any:
    text = str(value).strip()
    return value if not text or HUB_ID.fullmatch(text) else text.replace("\\", "/").rstrip("/").rpartition("/")[2]
