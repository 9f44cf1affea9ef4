"""What is to be pictured: each prompt in each size, with its seed, under the name of its file.

Known before anything is loaded, and the same at every step of a run, so that pictures differ by the adapter alone.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..data.buckets import Bucket, Fit
from ..data.encode import Picture
from ..errors import JobError
from ..flux.flavours import Flavour
from ..flux.vae import DOWNSCALE
from ..specs.prompts import TOKEN, parse_library
from ..specs.validation import ValidationSpec, parse_sizes
from .starts import Start, brought

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
    """One picture of the run; `name` is that of its file, `reference` what it starts from."""

    name: str
    prompt: str
    negative_prompt: str
    canvas: Canvas
    reference: Picture | None = None

    @property
    def num_tokens(self) -> int:
        """Image tokens of the picture and of what it starts from."""
        return self.canvas.num_tokens + (Canvas(*self.reference.bucket, 0).num_tokens if self.reference else 0)


def place_of(shot: Shot, shots: Sequence[Shot]) -> int | None:
    """The number of the job's prompt; None of one that somebody typed in."""
    return None if shot.name.startswith(ASKED) else shots.index(shot)


def alike(shots: Iterable[Shot]) -> list[list[Shot]]:
    """Those that can be sampled together: on one canvas, from references of one size."""
    groups: dict[tuple[Canvas, Bucket | None], list[Shot]] = defaultdict(list)
    for shot in shots:
        groups[shot.canvas, shot.reference and shot.reference.bucket].append(shot)
    return list(groups.values())


def references_of(shots: Iterable[Shot]) -> list[Picture]:
    """What they start from, each once."""
    return list(dict.fromkeys(shot.reference for shot in shots if shot.reference is not None))


def to_data(shot: Shot) -> dict[str, Any]:
    """The shot as JSON data."""
    picture = shot.reference
    reference = picture and picture._asdict() | {
        "path": str(picture.path),
        "bucket": list(picture.bucket),
        "fit": list(picture.fit),
    }
    return shot._asdict() | {"canvas": shot.canvas._asdict(), "reference": reference}


def from_data(data: Mapping[str, Any]) -> Shot:
    """The inverse of `to_data`; what was written before there were references has none."""
    picture = data.get("reference")
    if picture:
        parts = {"path": Path(picture["path"]), "bucket": Bucket(*picture["bucket"]), "fit": Fit(*picture["fit"])}
        picture = Picture(**picture | parts)
    return Shot(**data | {"canvas": Canvas(**data["canvas"]), "reference": picture})


def make_shots(
    spec: ValidationSpec, flavour: Flavour, captions: Sequence[str], trigger_word: str, starts: Sequence[Start] = ()
) -> tuple[Shot, ...]:
    """Every picture of the job; `captions` stand in where it names no prompt. Each prompt takes the next of `starts`, and after
    the last the first again. JobError where <token> has no meaning."""
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
    sizes = _sizes(spec)
    shots = []
    for number, (name, prompt, other, seed) in enumerate(asked):
        start = starts[number % len(starts)] if starts else None
        for size in sizes or [None]:
            own, reference = _reference(start, size, flavour)
            named = f"{name}_{own.width}x{own.height}" if len(sizes) > 1 else name
            shots.append(Shot(named, prompt, other, Canvas(*own, seed), reference))
    return tuple(shots)


def _reference(start: Start | None, size: Bucket | None, flavour: Flavour) -> tuple[Bucket, Picture | None]:
    """The size of a picture, where none is asked for that of what it starts from; and this, of about the same area."""
    home = flavour.home_resolution
    if start is None:
        return size or Bucket(home, home), None
    bucket, fit = brought(start, (size.width * size.height) ** 0.5 if size else home, flavour.grid)
    shows_through = start.background if start.facts.has_alpha else ""
    return size or bucket, Picture(start.path, start.facts.digest, bucket, fit, shows_through)


def _sizes(spec: ValidationSpec) -> list[Bucket]:
    """Those asked for, in pixels, each once, rounded to whole tokens, which is said."""
    wanted = parse_sizes(spec.validation_resolution)
    sizes = [Bucket(*(max(UNIT, round(edge / UNIT) * UNIT) for edge in size)) for size in wanted]
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
