"""How FLUX.1 is kept on cards of usual sizes: what is set in the base for each, and what that is planned for.

A preset fills in settings that stand at their default; one that says otherwise is a conflict, not overruled. What comes out are
plain settings in the job, so a run does not know of presets. The sizes are those that `plan/` finds for rank 16 on `all+ffs`
with gradient checkpointing, pictures included, with a tenth of the card left; a test holds them to it.

The order of means is what they cost: bf16 as it is; int8, which training does not feel; int8 with some blocks waiting in RAM,
which takes time; NF4, which is the smallest and the least stable.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from .errors import JobError
from .specs.base import BaseModelSpec

CUSTOM = "custom"


class Preset(NamedTuple):
    """`base` are fields of BaseModelSpec; `pixels` and `batch` what it is planned for; `advice` is for the rest of the job."""

    base: Mapping[str, Any]
    pixels: int
    batch: int
    advice: str

    def settings(self) -> str:
        """In words."""
        return ", ".join(f"{name} {value}" for name, value in self.base.items())


CARDS: Mapping[str, Preset] = {
    "10 GB": Preset(
        {"base_model_precision": "nf4-bnb", "text_encoder_2_precision": "int8-quanto", "offload_during_startup": True},
        512,
        1,
        "an AdamW (bnb-adamw8bit) and max_grad_norm 0.01 keep NF4 stable; Lion does not",
    ),
    "12 GB": Preset(
        {"base_model_precision": "int8-quanto", "text_encoder_2_precision": "int8-quanto", "blocks_to_swap": 20},
        1024,
        1,
        "pictures of 512 px take less than those of 1024 px; nf4-bnb (choose custom) needs no waiting blocks",
    ),
    "16 GB": Preset({"base_model_precision": "int8-quanto"}, 1024, 1, "larger batches by gradient_accumulation_steps"),
    "24 GB": Preset({"vae_batch_size": 2}, 1024, 1, "bf16; with int8-quanto (choose custom) a batch of 4 fits"),
    "48 GB": Preset({"vae_batch_size": 4, "modulation_offload": "off"}, 1024, 4, "bf16, everything on the card"),
    "80 GB": Preset({"vae_batch_size": 8, "modulation_offload": "off"}, 1024, 8, "bf16, everything on the card"),
}


def fill(card: str, base: Mapping[str, Any], node: str) -> dict[str, Any]:
    """The fields of a base with those of the preset filled in; JobError where a field says something else already."""
    if card == CUSTOM:
        return dict(base)
    if card not in CARDS:
        raise JobError(f"{node}: there is no preset {card!r}; known are {', '.join((CUSTOM, *CARDS))}")
    filled, conflicts = dict(base), []
    for name, wanted in CARDS[card].base.items():
        default = BaseModelSpec.model_fields[name].default
        given = filled.get(name, default)
        if given not in (default, wanted):
            conflicts.append(f"{name} is {given!r}, and the preset sets {wanted!r}: set it back to {default!r}")
        filled[name] = wanted
    if conflicts:
        raise JobError(f"{node}: card {card!r} and other settings disagree; choose card 'custom', or:\n" + "\n".join(conflicts))
    return filled


def describe(card: str) -> str:
    """What a preset sets, and what for."""
    if card == CUSTOM:
        return "card custom: nothing is set but what the other settings say"
    preset = CARDS[card]
    return (
        f"card {card}: sets {preset.settings()}; planned for {preset.pixels} px at batch size {preset.batch}; {preset.advice}"
    )
