"""What is to be pictured: each prompt in each size, with its seed, under the name of its file.

Known before anything is loaded, and the same at every step of a run, so that pictures differ by the adapter alone.
"""

import logging
from collections.abc import Sequence
from typing import NamedTuple

from ..errors import JobError
from ..flux.flavours import Flavour
from ..flux.vae import DOWNSCALE
from ..specs.prompts import TOKEN, parse_library
from ..specs.validation import ValidationSpec, parse_sizes

ASKED = "_asked-"  # begins the name of what somebody typed in while the run trains; no prompt of the job has such a name
UNIT = 2 * DOWNSCALE  # pixels of a token's edge

log = logging.getLogger(__name__)


class Canvas(NamedTuple):
    """Where sampling starts: a size in pixels, and the seed of its noise."""

    width: int
    height: int
    seed: int

    @property
    def num_tokens(self) -> int:
        """Image tokens of one picture."""
        return (self.width // UNIT) * (self.height // UNIT)


class Shot(NamedTuple):
    """One picture of the run; `name` is that of its file."""

    name: str
    prompt: str
    negative_prompt: str
    canvas: Canvas


def place_of(shot: Shot, shots: Sequence[Shot]) -> int | None:
    """The number of the job's prompt; None of one that somebody typed in."""
    return None if shot.name.startswith(ASKED) else shots.index(shot)


def make_shots(spec: ValidationSpec, flavour: Flavour, captions: Sequence[str], trigger_word: str) -> tuple[Shot, ...]:
    """Every picture of the job; `captions` stand in where it names no prompt. JobError where <token> has no meaning."""
    negative, seed = spec.validation_negative_prompt, spec.validation_seed
    named = parse_library(spec.user_prompt_library)
    prompts = spec.validation_prompts or (() if named else tuple(captions[: spec.num_validation_images]))
    asked = [(f"{number:02d}", _with_trigger(prompt, trigger_word), negative, seed) for number, prompt in enumerate(prompts)]
    for name, prompt, own_negative, own_seed in named:
        chosen = negative if own_negative is None else own_negative, seed if own_seed is None else own_seed
        asked.append((name, _with_trigger(prompt, trigger_word), *chosen))
    twice = {entry.name for entry in named} & {f"{number:02d}" for number in range(len(prompts))}
    if twice:
        raise JobError(f"the nickname {min(twice)!r} is also the number of a prompt in validation_prompts; choose another")
    sizes = _sizes(spec, flavour)
    return tuple(
        Shot(f"{name}_{width}x{height}" if len(sizes) > 1 else name, prompt, other, Canvas(width, height, seed))
        for name, prompt, other, seed in asked
        for width, height in sizes
    )


def _sizes(spec: ValidationSpec, flavour: Flavour) -> list[tuple[int, int]]:
    """In pixels, each once, rounded to whole tokens, which is said."""
    home = flavour.home_resolution
    wanted = parse_sizes(spec.validation_resolution) or [(home, home)]
    sizes = [tuple(max(UNIT, round(edge / UNIT) * UNIT) for edge in size) for size in wanted]
    for size, near in zip(wanted, sizes, strict=True):
        if size != near:
            log.warning("validation_resolution %dx%d is pictured as %dx%d: edges are multiples of %d", *size, *near, UNIT)
    return list(dict.fromkeys(sizes))


def _with_trigger(prompt: str, trigger_word: str) -> str:
    if TOKEN in prompt and not trigger_word:
        raise JobError(
            f"the prompt {prompt!r} has {TOKEN}, but no dataset has a trigger_word; give one, or write the word itself"
        )
    return prompt.replace(TOKEN, trigger_word)
