"""The forms of a caption: what stands in the file becomes what is encoded, in this order.

1. Wildcards: each __name__ becomes a line of name.txt.
2. Tags: the parts between separators are shuffled, but for the first `keep_tags`; one that is the trigger word goes in front.
3. The trigger word is put in front where neither caption nor prefix holds it: where tags are shuffled as one of them, else
   with a blank.
4. The prefix is put in front, with a blank.

Forms are drawn with a seed made of the picture's path below its folder and the caption. So they are the same in each run and on
each machine, a changed caption changes only itself, and their cached encodings stay valid; asking for more forms adds some and
keeps those there are. With several forms of shuffled tags the first keeps the order as written. With just one it is a
shuffled one: the order then differs from picture to picture. Needs no torch.
"""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from ..errors import JobError
from ..file_names import expanded
from ..specs.dataset import DatasetSpec
from .text_files import TextReader, one_line

WILDCARD = re.compile(r"__((?:[^\W_]|[./])(?:[\w ./()-]*?[^\s_])?)__")
MAX_DEPTH = 16  # wildcards within wildcards
PATIENCE = 8  # draws without a new form, for each form that there is: then there is hardly one left

Forms = Callable[[str, Sequence[str]], tuple[str, ...]]


def make_forms(spec: DatasetSpec) -> Forms | None:
    """What makes the forms of a picture's captions, from its path below the folder and the captions as they are written.

    None where the spec leaves captions alone. JobError where a wildcard has no file, is empty or holds itself.
    """
    trigger, prefix, separator = map(one_line, (spec.trigger_word, spec.caption_prefix, spec.tag_separator))
    if spec.shuffle_tags:
        trigger = trigger.removesuffix(separator)  # 'sks,' is how it is written where captions are only joined
    wildcards = Wildcards(spec) if spec.wildcards_dir.strip() else None
    tags = Tags(separator, spec.keep_tags, trigger) if spec.shuffle_tags else None
    if not (trigger or prefix or wildcards or tags):
        return None
    between = tags.joiner if tags else " "
    has_trigger = holds_word(trigger)

    def forms(picture: str, captions: Sequence[str]) -> tuple[str, ...]:
        drawn = [form for caption in captions for form in _draw(picture, caption, spec.caption_variants, wildcards, tags)]
        if trigger and not has_trigger(prefix):
            drawn = [form if has_trigger(form) else between.join(filter(None, (trigger, form))) for form in drawn]
        return tuple(dict.fromkeys(" ".join(filter(None, (prefix, form))) for form in drawn))

    return forms


def holds_word(word: str) -> Callable[[str], bool]:
    """Whether a caption holds this word, whole and in whatever case: 'sks' is in 'a SKS, red' but not in 'asks'."""
    pattern = re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
    return lambda caption: pattern.search(caption) is not None


class Tags(NamedTuple):
    """How captions are parted. `separator` '' stands for white space."""

    separator: str
    num_kept: int
    trigger: str

    @property
    def joiner(self) -> str:
        return f"{self.separator} "

    def split(self, caption: str) -> tuple[list[str], list[str]]:
        """The parts that stay in front, and the others."""
        parts = [part.strip() for part in caption.split(self.separator or None)]
        is_trigger = [bool(self.trigger) and part.casefold() == self.trigger.casefold() for part in parts]
        front = [part for part, first in zip(parts, is_trigger, strict=True) if first]
        others = [part for part, first in zip(parts, is_trigger, strict=True) if part and not first]
        return front + others[: self.num_kept], others[self.num_kept :]

    def arrange(self, caption: str, random: Random | None) -> str:
        """The caption with its parts shuffled, or in their order where nothing is drawn from."""
        kept, rest = self.split(caption)
        if random is not None:
            rest = sorted(rest, key=lambda part: random.random())  # the one draw that Python promises never to change
        return self.joiner.join(kept + rest)


class Wildcards:
    """The lines of the text files in a folder, by the file's path below it without .txt; each file is read once."""

    def __init__(self, spec: DatasetSpec):
        self._folder = expanded(spec.wildcards_dir).absolute()
        if not self._folder.is_dir():
            raise JobError(f"dataset {spec.id!r}: there is no folder {self._folder}; correct wildcards_dir")
        self._reader = TextReader("wildcard")
        self._lines: dict[str, list[str]] = {}

    def fill(self, caption: str, random: Random, inside: tuple[str, ...] = ()) -> str:
        """The caption with a line for each wildcard, and for each in that line; `inside` are those whose line this is."""

        def line(match: re.Match) -> str:
            name = match[1]
            if name in inside or len(inside) == MAX_DEPTH:
                chain = " in ".join(f"__{wildcard}__" for wildcard in (name, *reversed(inside)))
                raise JobError(f"wildcards in {self._folder} hold each other without end: {chain}; take one out")
            lines = self.lines(name)
            return self.fill(lines[int(random.random() * len(lines))], random, (*inside, name))

        return WILDCARD.sub(line, caption)

    def lines(self, name: str) -> list[str]:
        """The lines of this wildcard, without empty ones and those that begin with #."""
        if name not in self._lines:
            self._lines[name] = self._read(name)
        return self._lines[name]

    def _read(self, name: str) -> list[str]:
        path = self._folder / f"{name}.txt"
        if self._folder.resolve() not in path.resolve().parents:
            raise JobError(f"wildcard __{name}__ is outside of {self._folder}; only files below that folder are read")
        try:
            text = self._reader.read(path)
        except OSError as error:
            raise JobError(f"wildcard __{name}__ needs {path} ({error.strerror}); write it, or correct the name") from None
        lines = [one_line(line) for line in text.splitlines()]
        lines = [line for line in dict.fromkeys(lines) if line and not line.startswith("#")]
        if not lines:
            raise JobError(f"{path} has no line to take for the wildcard __{name}__; write some")
        return lines


def _draw(picture: str, caption: str, num: int, wildcards: Wildcards | None, tags: Tags | None) -> list[str]:
    """So many distinct forms of one caption, or as many as there are; the trigger word and prefix are not yet there."""
    if wildcards is None and tags is None:
        return [caption]
    random = Random(int.from_bytes(hashlib.sha256(f"{picture}\n{caption}".encode(errors="surrogatepass")).digest()[:8], "big"))

    def draw(shuffled: bool) -> str:
        text = wildcards.fill(caption, random) if wildcards else caption
        return tags.arrange(text, random if shuffled else None) if tags else text

    forms = {draw(shuffled=num == 1): None}
    if wildcards is None or not WILDCARD.search(caption):
        num = min(num, math.factorial(min(8, len(tags.split(caption)[1])))) if tags else 1
    failed = 0
    while len(forms) < num and failed < PATIENCE * (len(forms) + 1):
        form = draw(shuffled=True)
        failed = failed + 1 if form in forms else 0
        forms[form] = None
    return list(forms)
