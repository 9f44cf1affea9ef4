"""Captions that are longer than the encoders read: which, and what of them FLUX never sees.

T5 gives FLUX the words, so what it does not read is not learned. CLIP only gives one vector that sums the caption up, so a
caption may well be longer than CLIP's 77 tokens. Only tokenizers are loaded, and of a caption that is surely short enough
not even its tokens are counted.
"""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..flux.files import ModelFiles
from ..flux.flavours import Flavour
from ..flux.text import load_tokenizer
from .sample import Sample

CLIP, T5 = "CLIP", "T5"
MAX_NAMED = {T5: 10, CLIP: 3}
MAX_SHOWN = 120  # characters of what is cut
SPARE_TOKENS = 3  # begin, end, and the blank that T5 puts before the first word
AT_ONCE = 1024
LONGEST_WORD = 30  # characters

log = logging.getLogger(__name__)


class CutCaption(NamedTuple):
    """A caption of which an encoder reads only the first `limit` of `num_tokens` tokens, marks of begin and end among them."""

    path: Path  # of the picture
    caption: str
    encoder: str
    limit: int
    num_tokens: int
    cut: str  # the words from the first on that is not read whole


def warn_of_cut_captions(samples: Iterable[Sample], files: ModelFiles, flavour: Flavour) -> None:
    """A warning for each encoder that does not read all of every caption."""
    for line in describe_cuts(cut_captions(samples, files, flavour)):
        log.warning(line)


def describe_cuts(cuts: Sequence[CutCaption]) -> list[str]:
    """A paragraph for each encoder, which names some of the pictures with what is cut and counts the others."""
    told = []
    for encoder, meaning in (
        (T5, "the rest is never learned. Shorten them, or move what matters to the front"),
        (CLIP, "which matters little: it only sums a caption up, and the words come from T5"),
    ):
        mine = [cut for cut in cuts if cut.encoder == encoder]
        if not mine:
            continue
        lines = [f"  {cut.path} ({cut.num_tokens} tokens), not read: {_shown(cut.cut)}" for cut in mine[: MAX_NAMED[encoder]]]
        if len(mine) > len(lines):
            lines.append(f"  and {len(mine) - len(lines)} more")
        many = "1 caption is" if len(mine) == 1 else f"{len(mine)} captions are"
        told.append("\n".join([f"{many} longer than the {mine[0].limit} tokens that {encoder} reads; {meaning}:", *lines]))
    return told


def cut_captions(samples: Iterable[Sample], files: ModelFiles, flavour: Flavour) -> list[CutCaption]:
    """What each encoder does not read, T5 first, each picture's caption once however many resolutions it is shown in."""
    pictures = dict.fromkeys((sample.file, caption) for sample in samples for caption in sample.captions)
    cuts = []
    for encoder, tokenizer, limit in (
        (T5, files.t5_tokenizer, flavour.t5_max_length),
        (CLIP, files.clip_tokenizer, flavour.clip_max_length),
    ):
        long = _too_long({caption for _, caption in pictures}, tokenizer, limit)
        cuts += [CutCaption(Path(file), text, encoder, limit, *long[text]) for file, text in pictures if text in long]
    return cuts


def _too_long(captions: set[str], tokenizer_path: Path, limit: int) -> dict[str, tuple[int, str]]:
    """The number of tokens and what is cut, of each caption that has more than `limit`."""
    doubtful = [caption for caption in captions if not caption.isascii() or len(caption) + SPARE_TOKENS > limit]
    if not doubtful:
        return {}
    loaded = load_tokenizer(tokenizer_path)
    if not isinstance(loaded, PreTrainedTokenizerFast):
        log.warning(
            "%s is no fast tokenizer (it lacks a tokenizer.json), so captions were not searched for such as are too long",
            tokenizer_path,
        )
        return {}
    tokenizer: Tokenizer = loaded.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    long = {}
    for start in range(0, len(doubtful), AT_ONCE):
        chunk = doubtful[start : start + AT_ONCE]
        for caption, encoding in zip(chunk, tokenizer.encode_batch(chunk), strict=True):
            if len(encoding) > limit:
                starts = [
                    offset[0]
                    for offset, is_mark in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
                    if not is_mark
                ]
                num_read = limit - (len(encoding) - len(starts))
                long[caption] = len(encoding), _from_word(caption, starts[num_read])
    return long


def _from_word(caption: str, position: int) -> str:
    """The caption from the word on in which this position is, or from there where words are not parted by blanks."""
    blank = caption.rfind(" ", max(0, position - LONGEST_WORD), position + 1)
    return caption[blank + 1 if blank >= 0 else position :].strip()


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")
