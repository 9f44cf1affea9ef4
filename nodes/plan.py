"""TrainingPlan: whether the run fits into the memory there is, before it starts.

The child process does the work (`flux-lora check`), since it needs torch and the trainer; nothing is loaded or trained.
"""

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.job_file import parse_job
from ..trainer_core.specs.base import BaseModelSpec
from ..trainer_core.specs.dataset import DatasetSpec
from ..trainer_core.specs.training import TrainingSpec
from .child import check
from .folders import home_dir
from .job_sockets import comfy_device, needed_sockets, optional_sockets
from .permissions import check_job
from .pictures import load_pictures
from .widgets import (
    CATEGORY,
    completed,
)


class TrainingPlan(io.ComfyNode):
    """The specs in; what each phase needs out, in words and as a chart."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainingPlan",
            display_name="Training Plan",
            category=CATEGORY,
            description="Says before the training what each phase will need, and what to change where it does not fit.",
            inputs=[
                *needed_sockets(),
                io.Boolean.Input(
                    "probe",
                    default=False,
                    optional=True,
                    tooltip="Also train a step of a small part, to tell how long a step will take.",
                ),
                *optional_sockets(),
            ],
            outputs=[io.String.Output(display_name="report"), io.Image.Output(display_name="chart")],
        )

    @classmethod
    def execute(
        cls,
        model: BaseModelSpec,
        dataset: tuple[DatasetSpec, ...],
        options: TrainingSpec | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        import comfy.model_management as management

        specs = completed(cls, values)
        probe = specs.pop("probe")
        training = (options or TrainingSpec()).model_copy(update={"device": comfy_device()})
        parts = {"base": model, "datasets": dataset, "training": training.model_dump(), **specs}
        job = parse_job({"name": "plan", **parts}, "TrainingPlan")
        check_job(job, "TrainingPlan")
        with tempfile.TemporaryDirectory() as folder:
            chart = Path(folder) / "plan.png"
            on_tick = management.throw_exception_if_processing_interrupted
            report = check(job, home_dir(), chart, probe=probe, on_tick=on_tick)
            return io.NodeOutput(report["plan_text"], load_pictures([chart]))

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> float:
        """The memory there is changes, so the plan is made anew each time."""
        return float("nan")
