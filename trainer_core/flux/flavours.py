"""What sets the FLUX.1 flavours apart, as one table of facts. No torch: ComfyUI's nodes read it too.

Numbers of the FLUX flavours: their model cards and scheduler configs (shift grows with the number of image tokens, from 0.5
at 256 tokens to 1.15 at 4096, in the logarithm). Those of `pico` were chosen when it was made; see `pico/README.md`.
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
    """`grid` is the unit of picture edges in pixels, `home_resolution` the edge of a square picture, in pixels."""

    architecture: str
    t5_max_length: int
    clip_max_length: int
    grid: int
    home_resolution: int
    sampler: SamplerDefaults


FLAVOURS: dict[str, Flavour] = {
    "pico": Flavour("flux-1-pico", 32, 32, 16, 64, SamplerDefaults(20, 2.5, 3.0, 2.0)),
    "dev": Flavour("flux-1-dev", 512, 77, 64, 1024, SamplerDefaults(20, 3.5, 1.0, 0.0)),
    "krea": Flavour("flux-1-dev", 512, 77, 64, 1024, SamplerDefaults(28, 4.5, 1.0, 0.0)),
    "schnell": Flavour("flux-1-schnell", 256, 77, 64, 1024, SamplerDefaults(4, 0.0, 1.0, 1.0)),
}
