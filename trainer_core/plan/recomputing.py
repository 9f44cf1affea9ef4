"""How many blocks are recomputed in the backward pass: as few as the memory there is asks for.

Recomputing all blocks costs about 40 % of a step, so with `gradient_checkpointing_interval` 0 the plan says how many it takes.
What a block keeps is known from the rehearsal; the first blocks are chosen, since what they would keep is held longest. The
numbers of the training are the same whichever blocks are chosen, so a resumed run may well find another number.

A part of the memory is left free: the plan is within some percent, and others use the machine too.
"""

from dataclasses import replace

from ..setup import Setup
from .phases import largest_pass, training_work, transformer_phases
from .room import Room

USABLE = 0.8  # of the memory there is


def is_left_to_memory(setup: Setup) -> bool:
    """Whether the job leaves the number open, it was not found out, and it makes a difference. With blocks that wait, or
    activations that do, all are recomputed: that is what saves there."""
    training = setup.job.training
    return (
        setup.num_recomputed is None
        and training.gradient_checkpointing
        and training.gradient_checkpointing_interval == 0
        and not training.enable_activation_offloading
        and not setup.job.base.blocks_to_swap
    )


def as_few_recomputed(setup: Setup, room: Room) -> Setup:
    """The setup with as many blocks to recompute as it takes for a step to fit into the usable part of the room; with all where
    not even that fits."""
    if not is_left_to_memory(setup):
        return setup
    one, num_blocks = largest_pass(setup), setup.shape.num_double + setup.shape.num_single
    phase = next(phase for phase in transformer_phases(replace(setup, num_recomputed=num_blocks)) if phase.name == "train")
    free = USABLE * room.card - phase.card if room.card else USABLE * room.host - phase.host - phase.mapped

    def work(count: int) -> int:
        return training_work(replace(setup, num_recomputed=count), one)

    all_of_them = work(num_blocks)
    count = next((count for count in range(num_blocks) if work(count) - all_of_them <= free), num_blocks)
    return replace(setup, num_recomputed=count)


def say(setup: Setup) -> str:
    """The choice as people read it."""
    num_blocks = setup.shape.num_double + setup.shape.num_single
    return f"{len(setup.recomputed_layers)} of {num_blocks} blocks are recomputed in the backward pass"
