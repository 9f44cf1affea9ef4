"""Before the training: every picture, caption and mask through its encoder, on disk, where the run reads them again and again.

What is there already is checked and kept, so an interrupted run goes on where it was. A wish to stop is obeyed at each report.
Several processes share the pictures; the first alone does the captions, whose encoders would have to be loaded by each.
"""

from dataclasses import replace

from .context import RunContext
from .data.cache_limit import GB, make_room
from .data.encode import Caches, encode_captions, encode_masks, encode_pictures, open_caches, pictures_of
from .data.too_long import warn_of_cut_captions
from .setup import Setup
from .validation.shots import references_of


def fill_caches(setup: Setup, context: RunContext) -> Caches:
    """Every picture and every caption encoded, on disk; the encoders are freed again on return."""
    base, limit, group = setup.job.base, setup.job.training.cache_size_limit * GB, context.group
    samples = (*setup.samples, *setup.eval_samples)
    warn_of_cut_captions(samples, setup.files, setup.flavour)
    captions = [caption for sample in samples for caption in sample.captions]
    captions += [text for shot in setup.shots for text in (shot.prompt, shot.negative_prompt)] + [""]
    tiled, references = base.vae_enable_tiling, references_of(setup.shots)
    with group.one_after_the_first():
        caches = open_caches(context.cache_dir, samples, setup.files, setup.flavour, setup.encoding, tiled=tiled)
        if group.is_first:
            caches.check(samples, captions, context.stoppable("check cache"), references)
            if limit:
                make_room(context.cache_dir, limit, caches.shards_of(samples, captions, references))
    encode_pictures(
        caches,
        (*pictures_of(samples[group.rank :: group.count]), *references[group.rank :: group.count]),
        setup.files.vae,
        setup.device,
        context.stoppable("encode pictures"),
        tiled=tiled,
        sliced=base.vae_enable_slicing,
        batch_size=base.vae_batch_size,
    )
    if group.is_first:
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
    group.wait()
    if group.count > 1:
        caches = reopened(caches)
    if limit and group.is_first:
        make_room(context.cache_dir, limit, caches.shards_of(samples, captions, references))
    return caches


def reopened(caches: Caches) -> Caches:
    """The same caches with what other processes have put into them."""
    return replace(caches, latents=caches.latents.again(), captions=caches.captions.again(), masks=caches.masks.again())
