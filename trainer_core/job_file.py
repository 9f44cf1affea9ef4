"""Jobs from JSON and to JSON, and what is said of one that is wrong.

Unknown fields, wrong types and values out of range are all reported at once, each with its path and, where there is one, the
name that was probably meant.
"""

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from .errors import JobError
from .job import TrainJob
from .specs.adapter import LoraSpec
from .specs.base import BaseModelSpec
from .specs.dataset import DatasetSpec
from .specs.flow import FlowSpec
from .specs.optimizer import OptimizerSpec
from .specs.publishing import PublishingSpec
from .specs.training import TrainingSpec
from .specs.tread import TreadRoute
from .specs.validation import ValidationSpec

MOST_SHOWN = 400  # characters of a wrong value


def parse_job(data: Any, source: str = "job") -> TrainJob:
    """A validated job, or one JobError that lists every problem with its path and mend."""
    try:
        return TrainJob.model_validate(data)
    except ValidationError as error:
        raise _refusal(error, source) from None


def parse_part(part: str, value: Any, source: str) -> Any:
    """One field of the job, validated alone: nothing is asked of it that other parts decide. JobError as of `parse_job`."""
    try:
        return TypeAdapter(TrainJob.model_fields[part].annotation).validate_python(value)
    except ValidationError as error:
        raise _refusal(error, source, (part,)) from None


def load_job(path: Path) -> TrainJob:
    """Read a job file; JobError when it is missing, not JSON, or not a job."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"there is no job file {path}; `flux-lora demo --print-job` prints one to start from") from None
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path} is not JSON: {error}") from None
    return parse_job(data, str(path))


def dump_job(job: TrainJob) -> str:
    """The job as indented JSON, every default spelt out."""
    return json.dumps(job.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def shown_job(job: TrainJob) -> dict[str, Any]:
    """The job as data that others may see: without the header's entries, and without the webhook's address, a secret often."""
    return job.model_dump(mode="json", exclude={"metadata": True, "publishing": {"webhook_url"}})


def _refusal(error: ValidationError, source: str, place: tuple[str, ...] = ()) -> JobError:
    """Every problem with its path; `place` is where in the job the value belongs that was validated."""
    lines = [_explain(problem, (*place, *problem["loc"])) for problem in error.errors()]
    return JobError(f"{source} is not valid:\n" + "\n".join(f"  {line}" for line in lines))


def _explain(problem: Any, location: tuple[int | str, ...]) -> str:
    """One validation problem of pydantic's in our words."""
    path = ".".join(["job", *(_cut(str(part)) for part in location)])
    if problem["type"] == "extra_forbidden":
        parent, _, name = path.rpartition(".")
        close = difflib.get_close_matches(name, _known_fields(location[:-1]), n=1, cutoff=0.6)
        hint = f", did you mean {close[0]!r}?" if close else f"; known are {', '.join(_known_fields(location[:-1]))}"
        return f"{parent}: unknown field {name!r}{hint}"
    if problem["type"] == "missing":
        return f"{path}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(problem["input"], dict | BaseModel) else f" (got {_cut(repr(problem['input']))})"
    return f"{path}: {message}{shown}"


def _cut(text: str) -> str:
    """What is shown of a wrong name or value, which a stranger may have made as long as a book."""
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def _known_fields(location: tuple[int | str, ...]) -> list[str]:
    """The field names of the spec that this path of the job leads to."""
    model: type[BaseModel] = TrainJob
    for part in location:
        if isinstance(part, str):
            model = _SPEC_OF[part]
    return list(model.model_fields)


_SPEC_OF: dict[str, type[BaseModel]] = {
    "base": BaseModelSpec,
    "datasets": DatasetSpec,
    "lora": LoraSpec,
    "routes": TreadRoute,
    "optimizer": OptimizerSpec,
    "flow": FlowSpec,
    "validation": ValidationSpec,
    "training": TrainingSpec,
    "publishing": PublishingSpec,
}
