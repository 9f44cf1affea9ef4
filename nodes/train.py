"""TrainLoRA: the specs become one job, the job becomes a LoRA, and the run's events show on the node.

The node is idempotent on disk. Its job and its pictures name the run folder; a run found finished is returned, one found
unfinished goes on. So it does not matter when ComfyUI forgets what it has computed.
"""

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.events import Event
from ..trainer_core.graph_parts import SOCKETS, job_of
from ..trainer_core.job import TrainJob
from ..trainer_core.job_paths import network_wishes
from ..trainer_core.specs.base import BaseModelSpec
from ..trainer_core.specs.dataset import DatasetSpec
from ..trainer_core.specs.publishing import PublishingSpec
from ..trainer_core.specs.training import TrainingSpec
from .attached import attached
from .child import TrainingStopped, train
from .folders import home_dir, loras_dir, output_dir
from .job_sockets import comfy_device, needed_sockets, optional_sockets
from .loaded import load_lora
from .offers import offer
from .permissions import check_job, is_readable
from .pictures import load_pictures, opened
from .widgets import (
    CATEGORY,
    TrainRun,
    completed,
    widget,
)

MOST_METADATA = 1 << 20  # in characters; ComfyUI's model library and drag-and-drop read headers of a few MiB at most
PREVIEW_PIXELS = 512

log = logging.getLogger(__name__)


class TrainLoRA(io.ComfyNode):
    """Everything that a run needs in; the LoRA, its file and its pictures out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TrainLoRA",
            display_name="Train LoRA",
            category=CATEGORY,
            description="Trains in its own process. Cancel saves; queue it again to go on. A finished run returns at once.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                *needed_sockets(),
                widget(TrainJob, "name"),
                widget(TrainingSpec, "max_train_steps"),
                # not "seed": the browser would put a widget behind it that changes it on every run
                widget(TrainingSpec, "seed", "training_seed"),
                *optional_sockets(),
            ],
            outputs=[
                io.LoraModel.Output(display_name="LORA_MODEL"),
                io.String.Output(display_name="path"),
                io.LossMap.Output(display_name="LOSS_MAP"),
                io.Image.Output(display_name="samples"),
                TrainRun.Output(display_name="TRAIN_RUN"),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: BaseModelSpec,
        dataset: tuple[DatasetSpec, ...],
        options: TrainingSpec | None = None,
        **values: Any,
    ) -> io.NodeOutput:
        parts = {"base": model, "datasets": dataset, **{name: values.pop(name, None) for name in SOCKETS}}
        job = job_of(completed(cls, values), options, comfy_device(), parts, _metadata(cls.hidden, parts["publishing"]))
        check_job(job, "TrainLoRA")
        result = _trained(job, cls.hidden)
        path = offer(Path(result["lora"]), loras_dir() / f"{result['run_id']}.safetensors")
        samples = load_pictures(map(Path, result["samples"])) if result["samples"] else _no_samples()
        losses = {"loss": result["losses"]}
        shown = {"images": [_shown(path) for path in (result["before_after"], result["loss_curve"]) if path]}
        shown["flux_lora_run"] = [result["run_id"]]  # for the monitor, which is not told of results that ComfyUI has kept
        return io.NodeOutput(load_lora(path), str(path), losses, samples, result["run_dir"], ui=shown)


def _trained(job: TrainJob, hidden: Any) -> dict[str, Any]:
    """The result of the run. A stop by the monitor's button ends the graph as Cancel does: it is no error."""
    import comfy.model_management as management

    try:
        return train(
            job,
            home_dir(),
            attach=partial(attached, node_id=_shown_node(hidden)),
            free_memory=_free_memory,
            on_event=NodeProgress(hidden.unique_id),
            on_tick=management.throw_exception_if_processing_interrupted,
            allow_network=bool(network_wishes(job)),  # which the owner allows, or it would have been refused
        )
    except TrainingStopped as stopped:
        log.info("%s", stopped)
        raise management.InterruptProcessingException from None


class NodeProgress:
    """A listener that shows events on a node: the bar of the phase, and the newest sample, also while it is made.

    ComfyUI could show a line of text as well (send_progress_text), but its browser side would save that text into the workflow
    as if it were the value of one more widget.
    """

    def __init__(self, node_id: str):
        from comfy.utils import ProgressBar

        self._bar = ProgressBar(1, node_id=node_id)

    def __call__(self, event: Event) -> None:
        kind = event["event"]
        if kind == "phase" and event["total"]:
            self._bar.update_absolute(event["done"], event["total"])
        elif kind == "step":
            self._bar.update_absolute(event["step"], event["steps"])
        elif kind in ("preview", "sample") and is_readable(Path(event["path"])):
            self._bar.update_absolute(self._bar.current, preview=("JPEG", opened(Path(event["path"])), PREVIEW_PIXELS))
        elif kind == "warning":
            log.warning("%s", event["message"])


def _shown_node(hidden: Any) -> str:
    """The id of this node on the canvas: one that other nodes have made is shown as one of theirs."""
    return hidden.dynprompt.get_display_node_id(hidden.unique_id)


def _free_memory() -> None:
    """Give the card to the training; what ComfyUI still needs it loads again."""
    import comfy.model_management as management

    management.unload_all_models()
    management.soft_empty_cache()


def _metadata(hidden: Any, publishing: PublishingSpec | None) -> dict[str, str]:
    """The graph, for the LoRA's header: dropping the file on the canvas brings the graph back. Without the webhook's address,
    which may be a secret, while the LoRA is given to others."""
    from comfy.cli_args import args

    if args.disable_metadata:
        return {}
    graph = {"prompt": hidden.prompt, "workflow": (hidden.extra_pnginfo or {}).get("workflow")}
    secret = json.dumps(publishing.webhook_url)[1:-1] if publishing and publishing.webhook_url.startswith("http") else None
    texts = {name: json.dumps(value) for name, value in graph.items() if value}
    entries = {name: text.replace(secret, "") if secret else text for name, text in texts.items()}
    if sum(map(len, entries.values())) > MOST_METADATA:
        log.warning("the workflow is too large for the LoRA's header and is left out")
        return {}
    return entries


def _no_samples() -> Any:
    """What stands for pictures where none were asked for: nodes that need them are told why."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker("TrainLoRA made no samples, because num_validation_images is 0")


def _shown(path: str) -> dict[str, str]:
    """A picture below the output folder, as the browser asks for it."""
    relative = Path(path).relative_to(output_dir())
    return {"filename": relative.name, "subfolder": relative.parent.as_posix(), "type": "output"}
