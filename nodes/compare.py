"""CompareCheckpoints: a run's LoRAs side by side, and the winner into the LoRA folder.

The child process makes the pictures (`flux-lora compare`), with the base as it was trained on.
"""

import tempfile
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.saved import BEST
from .child import compare
from .folders import home_dir
from .offers import copy_lora
from .permissions import check_paths, own_run
from .pictures import load_pictures
from .widgets import CATEGORY, TrainRun, completed, text


class CompareCheckpoints(io.ComfyNode):
    """A run in; the grid and what was measured out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="CompareCheckpoints",
            display_name="Compare Checkpoints",
            category=CATEGORY,
            description="Pictures by every checkpoint of a run beside each other, with the held-out loss; copies the winner.",
            is_output_node=True,
            inputs=[
                TrainRun.Input("run", tooltip="The run, from Train LoRA."),
                text(
                    "checkpoints",
                    "Which ones: final, best, ema, or steps, such as 250, 500, 500-ema. Empty: all that are kept.",
                ),
                text("strengths", "Strengths of the LoRA, such as 0.7, 1.0; the base is always there.", "1.0"),
                text("save_as", "Copy the winner into the LoRA folder under this name; empty: nothing is copied."),
                text("winner", "Which one is copied: best, final, ema, or a step such as 250.", BEST),
            ],
            outputs=[
                io.Image.Output(display_name="grid"),
                io.String.Output(display_name="report"),
                io.String.Output(display_name="path"),
            ],
        )

    @classmethod
    def execute(cls, run: str, **values: Any) -> io.NodeOutput:
        import comfy.model_management as management

        values = completed(cls, values)
        save_as = values["save_as"].strip()
        run_dir = own_run(run, "CompareCheckpoints")
        check_paths(run_dir.job(), "CompareCheckpoints")  # a request may have put that job there
        copied = str(copy_lora(run_dir, values["winner"], save_as)) if save_as else ""
        management.unload_all_models()
        with tempfile.TemporaryDirectory() as folder:
            grid = Path(folder) / "grid.png"
            on_tick = management.throw_exception_if_processing_interrupted
            report = compare(run_dir, home_dir(), grid, values["checkpoints"], values["strengths"], on_tick=on_tick)
            return io.NodeOutput(load_pictures([grid]), report["text"], copied)
