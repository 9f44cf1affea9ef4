"""LoadTrainedFlux: MODEL, CLIP and VAE of the very files that a run was trained on, with its LoRA applied."""

from typing import Any

from comfy_api.latest import io

from ..trainer_core.saved import FINAL, find_lora
from .permissions import check_part, own_run
from .widgets import CATEGORY, TrainRun, completed


class LoadTrainedFlux(io.ComfyNode):
    """A run in, what is needed to sample with its LoRA out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadTrainedFlux",
            display_name="Load Trained FLUX",
            category=CATEGORY,
            description="Loads the base that a run was trained on, with the trained LoRA on it, ready to sample.",
            inputs=[
                TrainRun.Input("run", tooltip="The run, from Train LoRA."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="Strength of the LoRA; 0 is the untrained base, to compare with.",
                ),
                io.String.Input(
                    "checkpoint",
                    default=FINAL,
                    optional=True,
                    tooltip="final, best (by the held-out loss), ema, latest (also where a run was stopped), or a step: 250.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                io.Vae.Output(display_name="VAE"),
            ],
        )

    @classmethod
    def execute(cls, run: str, **values: Any) -> io.NodeOutput:
        values = completed(cls, values)
        run_dir = own_run(run, "LoadTrainedFlux")
        lora = find_lora(run_dir, values["checkpoint"])
        base = run_dir.job().base
        check_part(base, "LoadTrainedFlux")  # a request may have put that job there
        from .comfy_flux import apply_lora, load_flux

        model, clip, vae = load_flux(base)
        return io.NodeOutput(apply_lora(model, lora.path, values["strength"]), clip, vae)
