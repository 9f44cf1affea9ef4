"""Under which licence a LoRA stands: that of the base it was trained on, and where several took part, the strictest.

Dev's weights are for non-commercial use, and so is what was made of them; schnell's and pico's are under Apache 2.0. So dev
wins over schnell, and an adapter whose base nobody knows counts as dev's. By the architecture's names in the LoRA's header.
No torch.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Licence(NamedTuple):
    """`id` is the hub's word for it; `name` and `link` are for those that it calls `other`."""

    id: str
    name: str
    link: str

    @property
    def shown(self) -> str:
        return f"{self.name} ({self.link})" if self.link else self.name


DEV, SCHNELL, PICO = "flux-1-dev", "flux-1-schnell", "flux-1-pico"
STRICTEST_FIRST = (DEV, SCHNELL, PICO)
LICENCES = {
    DEV: Licence(
        "other",
        "flux-1-dev-non-commercial-license",
        "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    ),
    SCHNELL: Licence("apache-2.0", "apache-2.0", ""),
    PICO: Licence("apache-2.0", "apache-2.0", ""),
}


def strictest(architectures: Iterable[str]) -> str:
    """Of the bases that took part, the one whose licence binds; dev where one of them is not known, or there is none."""
    known = {name.removesuffix("/lora") for name in architectures}
    if not known <= LICENCES.keys():
        return DEV
    return next((name for name in STRICTEST_FIRST if name in known), DEV)
