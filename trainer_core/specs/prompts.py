"""A prompt library: named prompts as JSON, as SimpleTuner's users keep them.

{"portrait": "a photo of <token>, studio light", "walk": {"prompt": "<token> in a park", "seed": 7}}
"""

import json
import re
from typing import Any, NamedTuple

from ..file_names import problem_of

TOKEN = "<token>"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,79}")
FIELDS = ("prompt", "negative_prompt", "seed")
MEND = 'write it as {"nickname": "prompt"} or {"nickname": {"prompt": "...", "seed": 1}}'


class NamedPrompt(NamedTuple):
    """One entry; None is the job's own."""

    name: str
    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None


def parse_library(text: str) -> tuple[NamedPrompt, ...]:
    """The entries in their order; ValueError says what is wrong. An empty text has none."""
    if not text.strip():
        return ()
    try:
        entries = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"the prompt library is no JSON (line {error.lineno}: {error.msg}); {MEND}") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets without end
        raise ValueError(f"the prompt library is no JSON ({error}); {MEND}") from None
    if not isinstance(entries, list) or not all(isinstance(entry, tuple) for entry in entries):
        raise ValueError(f"the prompt library is no JSON object; {MEND}")
    if not entries:
        raise ValueError(f"the prompt library has no prompts; {MEND}, or leave the text empty")
    names = [name.casefold() for name, _ in entries]
    twice = sorted({name for name, _ in entries if names.count(name.casefold()) > 1})
    if twice:
        raise ValueError(f"the prompt library has {', '.join(twice)} twice; give each prompt a nickname of its own")
    return tuple(_entry(name, value) for name, value in entries)


def _entry(name: str, value: Any) -> NamedPrompt:
    if not NAME.fullmatch(name) or problem_of(name):
        raise ValueError(
            f"the nickname {name!r} is no file name: take letters, digits, blank, dot, dash or underscore, at most 80 of them"
        )
    fields = {"prompt": value} if isinstance(value, str) else dict(value) if _is_object(value) else {}
    unknown = sorted(fields.keys() - set(FIELDS))
    if unknown:
        raise ValueError(f"prompt {name!r} has {', '.join(unknown)}; known are {', '.join(FIELDS)}")
    if not isinstance(fields.get("prompt"), str) or not fields["prompt"].strip():
        raise ValueError(f"prompt {name!r} has no text; {MEND}")
    seed, negative = fields.get("seed"), fields.get("negative_prompt")
    if seed is not None and (type(seed) is not int or not 0 <= seed < 2**63):
        raise ValueError(f"prompt {name!r}: seed {seed!r} is no whole number from 0 on")
    if negative is not None and not isinstance(negative, str):
        raise ValueError(f"prompt {name!r}: negative_prompt {negative!r} is no text")
    return NamedPrompt(name, fields["prompt"].strip(), negative, seed)


def _is_object(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(pair, tuple) for pair in value)


def _pairs(pairs: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A JSON object as its pairs, so that a name that stands twice is seen."""
    return pairs
