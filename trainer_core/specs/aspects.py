"""Aspects with weights, as a user writes them: one a line, '1.5' or '1.5: 2'."""

from collections.abc import Sequence


def parse_aspects(lines: Sequence[str]) -> tuple[tuple[float, float], ...]:
    """(width / height, weight) of each line; ValueError names a line that is neither form, or not above 0."""
    parsed = []
    for line in lines:
        aspect, _, weight = line.partition(":")
        try:
            pair = float(aspect), float(weight or 1)
        except ValueError:
            raise ValueError(
                f"crop_aspect_buckets: {line!r} is no aspect; write it as 1.5, or with a weight as 1.5: 2"
            ) from None
        if not (0.01 <= pair[0] <= 100 and 0 < pair[1] <= 1e6):
            raise ValueError(f"crop_aspect_buckets: {line!r} is out of range; an aspect is 0.01 to 100, a weight above 0")
        parsed.append(pair)
    return tuple(parsed)
