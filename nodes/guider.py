"""AdaptiveGuider: real CFG only where it matters, for SamplerCustomAdvanced.

The sampler works long after this node has, so what was done cannot be an output of it. The page is told by a message after
each run, and shows it on the node (`web/guider_report.js`); the log has one line of it.
"""

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from .guidance_report import Evaluation, describe
from .widgets import CATEGORY, completed

REPORT = "flux_lora.guidance"  # the message's name


class AdaptiveGuider(io.ComfyNode):
    """MODEL and conditioning in, GUIDER out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AdaptiveGuider",
            display_name="Adaptive Guider",
            category=CATEGORY,
            description="CFG that ends once the negative prompt no longer matters, which saves up to half the time.",
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                io.Float.Input(
                    "cfg",
                    default=3.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    optional=True,
                    tooltip="Strength of CFG while it is on.",
                ),
                io.Float.Input(
                    "threshold",
                    default=0.99,
                    min=0.0,
                    max=1.0,
                    step=0.0001,
                    optional=True,
                    tooltip="CFG ends for good when both predictions are this similar (cosine); 1: never.",
                ),
                io.Int.Input(
                    "initial_disabled_steps",
                    default=0,
                    min=0,
                    max=1000,
                    optional=True,
                    tooltip="So many steps at the beginning go without CFG. 2 to 6 help LoRAs trained with guidance above 1.",
                ),
                io.Float.Input(
                    "cfg_start_pct",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    tooltip="CFG starts after this share of the model's sampling range; 0: at once.",
                ),
                io.Float.Input(
                    "uncond_zero_scale",
                    default=0.0,
                    min=0.0,
                    max=2.0,
                    step=0.01,
                    optional=True,
                    tooltip="After CFG has ended, scale the prediction's contrast as if against an empty one; 0: off.",
                ),
            ],
            outputs=[io.Guider.Output(display_name="GUIDER")],
        )

    @classmethod
    def execute(cls, model: Any, positive: Any, negative: Any, **values: Any) -> io.NodeOutput:
        from .adaptive_cfg import AdaptiveCFGGuider, Rules

        node_id, rules = cls.hidden.unique_id, completed(cls, values)
        cfg = rules.pop("cfg")
        guider = AdaptiveCFGGuider(model, Rules(**rules), lambda evaluations: tell(node_id, evaluations))
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


def tell(node_id: str, evaluations: Sequence[Evaluation]) -> None:
    """Send the report to the page that queued the graph; a graph that no page queued has no node to show it on."""
    from server import PromptServer

    server = PromptServer.instance
    if server.client_id is not None:
        server.send_sync(REPORT, {"node_id": node_id, "text": describe(evaluations)}, server.client_id)
