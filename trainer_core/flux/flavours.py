"""What sets the FLUX.1 flavours apart, as one table of facts. No torch: ComfyUI's nodes read it too.

Numbers of the FLUX flavours: their model cards and scheduler configs (shift grows with the number of image tokens, from 0.5
at 256 tokens to 1.15 at 4096, in the logarithm); those of fluxbooru and libreflux are what SimpleTuner, where they come from,
trains and samples them with. Dev, krea and kontext have the same tensors, so no file tells which of them it is. Those of
`pico` were chosen when it was made; see `pico/README.md`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplerDefaults:
    """What suits this base when it makes pictures. `shift` 0 means: by the number of image tokens, as FLUX.1 dev does."""

    num_steps: int
    guidance: float
    guidance_real: float
    shift: float


@dataclass(frozen=True)
class Flavour:
    """`grid` is the unit of picture edges in pixels, `home_resolution` the edge of a square picture, in pixels.

    `guidance`: whether its files have the guidance embedder; None where both are met. `masks_text`: whether its base was
    trained with T5's padding hidden; None where either may be tried. `num_steps` are the fewest and the most sampler steps
    that make sense, `training_guidance` the guidance that its base was trained with, where that is not a matter of choice.
    `takes_references`: whether a picture may start from another; of those that people use, kontext alone learned it.
    """

    architecture: str
    t5_max_length: int
    clip_max_length: int
    grid: int
    home_resolution: int
    sampler: SamplerDefaults
    guidance: bool | None
    masks_text: bool | None = None
    num_steps: tuple[int, int] = (1, 1000)
    training_guidance: float | None = None
    takes_references: bool = False


FLAVOURS: dict[str, Flavour] = {
    "pico": Flavour("flux-1-pico", 32, 32, 16, 64, SamplerDefaults(20, 2.5, 3.0, 2.0), True, takes_references=True),
    "dev": Flavour("flux-1-dev", 512, 77, 64, 1024, SamplerDefaults(20, 3.5, 1.0, 0.0), True, num_steps=(15, 28)),
    "krea": Flavour("flux-1-dev", 512, 77, 64, 1024, SamplerDefaults(28, 4.5, 1.0, 0.0), True),
    "schnell": Flavour("flux-1-schnell", 256, 77, 64, 1024, SamplerDefaults(4, 0.0, 1.0, 1.0), False, num_steps=(1, 4)),
    "kontext": Flavour("flux-1-dev", 512, 77, 64, 1024, SamplerDefaults(28, 2.5, 1.0, 0.0), True, takes_references=True),
    "fluxbooru": Flavour(
        "flux-1-dev",
        512,
        77,
        64,
        1024,
        SamplerDefaults(28, 3.5, 6.0, 0.0),
        True,
        masks_text=False,
        num_steps=(28, 1000),
        training_guidance=3.5,
    ),
    "libreflux": Flavour(
        "flux-1-schnell",
        512,
        77,
        64,
        1024,
        SamplerDefaults(28, 3.5, 6.0, 0.0),
        None,
        masks_text=True,
        num_steps=(28, 1000),
    ),
}
