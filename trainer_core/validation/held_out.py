"""Pictures set aside from the datasets that are trained on, to measure the loss on what is never trained.

The choice goes by the pictures' content: the same ones in every run, also after others were added. A picture that is there
twice, in another resolution or another dataset, is set aside everywhere, or it would be trained on all the same.
"""

from collections import defaultdict
from collections.abc import Sequence

from ..data.sample import Sample
from ..errors import JobError

Samples = tuple[Sample, ...]


def set_aside(samples: Sequence[Sample], count: int) -> tuple[Samples, Samples]:
    """What is left to train on, and `count` pictures of each dataset, but of those for regularisation, under its name with
    'held out', in its first view alone. JobError where a dataset would have none left."""
    by_dataset: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if not sample.is_regularisation:
            by_dataset[sample.dataset_id].add(sample.facts.digest)
    for dataset_id, digests in by_dataset.items():
        if count and count >= len(digests):
            raise JobError(
                f"validation.num_held_out is {count}, but dataset {dataset_id!r} has only {len(digests)} different pictures; "
                "lower it, or add pictures"
            )
    chosen = {digest for digests in by_dataset.values() for digest in sorted(digests)[:count]}
    left = tuple(sample for sample in samples if sample.facts.digest not in chosen)
    empty = by_dataset.keys() - {sample.dataset_id for sample in left}
    if empty:
        raise JobError(
            f"validation.num_held_out leaves nothing of dataset {min(empty)!r}, whose pictures others hold too; lower it"
        )
    held_out = (sample for sample in samples if sample.facts.digest in chosen and not sample.is_regularisation)
    return left, tuple(
        sample._replace(dataset_id=f"{sample.dataset_id} held out", passes=1, views=sample.views[:1]) for sample in held_out
    )
