"""Before the training: every picture, caption and mask through its encoder, on disk, where the run reads them again and again.

What is there already is checked and kept, so an interrupted run goes on where it was. A wish to stop is obeyed at each report.
"""

from .context import RunContext
from .data.cache_limit import GB, make_room
from .data.encode import Caches, encode_captions, encode_masks, encode_pictures, open_caches
from .data.too_long import warn_of_cut_captions
from .setup import Setup


def fill_caches(setup: Setup, context: RunContext) -> Caches:
    """Every picture and every caption encoded, on disk; the encoders are freed again on return."""
    base, limit = setup.job.base, setup.job.training.cache_size_limit * GB
    samples = (*setup.samples, *setup.eval_samples)
    warn_of_cut_captions(samples, setup.files, setup.flavour)
    captions = [caption for sample in samples for caption in sample.captions]
    captions += [text for shot in setup.shots for text in (shot.prompt, shot.negative_prompt)] + [""]
    tiled = base.vae_enable_tiling
    caches = open_caches(context.cache_dir, samples, setup.files, setup.flavour, setup.encoding, tiled=tiled)
    caches.check(samples, captions, context.stoppable("check cache"))
    if limit:
        make_room(context.cache_dir, limit, caches.shards_of(samples, captions))
    encode_pictures(
        caches,
        samples,
        setup.files.vae,
        setup.device,
        context.stoppable("encode pictures"),
        tiled=tiled,
        sliced=base.vae_enable_slicing,
        batch_size=base.vae_batch_size,
    )
    encode_captions(
        caches,
        captions,
        setup.files,
        setup.flavour,
        setup.encoding,
        setup.device,
        context.stoppable("encode captions"),
        one_at_a_time=base.offload_during_startup,
    )
    encode_masks(caches, samples, context.stoppable("encode masks"))
    if limit:
        make_room(context.cache_dir, limit, caches.shards_of(samples, captions))
    return caches
