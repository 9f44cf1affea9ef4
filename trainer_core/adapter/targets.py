"""Which linear layers an adapter sits on, and at which rank.

A layer is named as diffusers names it. `flux_lora_target` chooses by endings of names (the sets are SimpleTuner's), so
`proj_out` also means the final projection; `custom` takes the endings from the user. `lora_blocks` then keeps only the layers
of some blocks, and `rank_pattern` gives some blocks another rank. Both say blocks in one small language:

    double 0-5, single 7, 20      the kind holds until another is named; both ends of a range belong to it

On FLUX.1 (19 double and 38 single blocks) the sets are: mmdit 190 layers, all 266, all+ffs 419, context 76, context+ffs 114,
ai-toolkit 495, tiny 2, nano 1.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from ..errors import JobError

_IMAGE_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TEXT_ATTENTION = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_TEXT_FEED_FORWARD = ("ff_context.net.0.proj", "ff_context.net.2")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", *_TEXT_FEED_FORWARD, "proj_mlp", "proj_out")
_MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")

TARGET_SUFFIXES: dict[str, tuple[str, ...]] = {
    "mmdit": _IMAGE_ATTENTION,
    "all": _IMAGE_ATTENTION + _TEXT_ATTENTION,
    "all+ffs": _IMAGE_ATTENTION + _TEXT_ATTENTION + _FEED_FORWARD,
    "context": _TEXT_ATTENTION,
    "context+ffs": _TEXT_ATTENTION + _TEXT_FEED_FORWARD,
    "ai-toolkit": _IMAGE_ATTENTION + _TEXT_ATTENTION + _FEED_FORWARD + _MODULATION,
    "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
    "nano": ("single_transformer_blocks.7.proj_out",),
}
BLOCK_LISTS = {"double": "transformer_blocks", "single": "single_transformer_blocks"}
MAX_RANK = 1024

Block = tuple[str, int]  # ("double", 3)


def linear_layers(model: nn.Module) -> list[str]:
    """Full names of all linear layers, in the model's order."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def target_modules(model: nn.Module, flux_lora_target: str, custom: Sequence[str] = ()) -> list[str]:
    """Full names of the linear layers of this set, in the model's order; JobError when there is none.

    `custom` are full names or endings of names, for the target of that name; each must match a layer.
    """
    linears = linear_layers(model)
    if flux_lora_target == "custom":
        return _custom_modules(linears, custom)
    suffixes = TARGET_SUFFIXES[flux_lora_target]
    matched = [name for name in linears if any(_ends_with(name, suffix) for suffix in suffixes)]
    if not matched:
        raise JobError(
            f"lora.flux_lora_target {flux_lora_target!r} matches no layer of this base (it looks for {', '.join(suffixes)}); "
            "choose another target, such as 'all'"
        )
    return matched


def count_blocks(model: nn.Module) -> dict[str, int]:
    """How many blocks of each kind the model has."""
    return {kind: len(model.get_submodule(block_list)) for kind, block_list in BLOCK_LISTS.items()}


def block_of(name: str) -> Block | None:
    """The block that a layer is in; None for those outside the blocks."""
    for kind, block_list in BLOCK_LISTS.items():
        if match := re.match(rf"{block_list}\.(\d+)\.", name):
            return kind, int(match[1])
    return None


def parse_blocks(text: str, num_blocks: Mapping[str, int], field: str) -> set[Block]:
    """The blocks that a text such as 'double 0-5, single 7' names; JobError says what of it cannot be read or is not there."""
    blocks: set[Block] = set()
    kind = ""
    has = ", ".join(f"{name} 0-{count - 1}" for name, count in num_blocks.items() if count)
    for item in text.split(","):
        match = re.fullmatch(r"\s*(?:(double|single)\s+)?(\d+)\s*(?:-\s*(\d+)\s*)?", item.lower())
        kind = (match and match[1]) or kind
        first, last = (int(match[2]), int(match[3] or match[2])) if match else (0, -1)
        if not kind or first > last:
            raise JobError(
                f"{field}: {item.strip()!r} in {text!r} is not a range of blocks; write for instance "
                f"'double 0-5, single 7' (this base has {has})"
            )
        if last >= num_blocks[kind]:
            raise JobError(f"{field}: there is no block {kind} {last} as in {text!r}; this base has {has}")
        blocks |= {(kind, index) for index in range(first, last + 1)}
    return blocks


def within_blocks(names: Iterable[str], lora_blocks: str, num_blocks: Mapping[str, int]) -> list[str]:
    """Those of the layers that are in these blocks; JobError when there is none."""
    blocks = parse_blocks(lora_blocks, num_blocks, "lora.lora_blocks")
    kept = [name for name in names if block_of(name) in blocks]
    if not kept:
        raise JobError(
            f"lora.lora_blocks {lora_blocks!r}: none of the layers of flux_lora_target is in these blocks; "
            "name other blocks, or choose another target"
        )
    return kept


def module_ranks(
    names: Sequence[str], lora_rank: int, rank_pattern: Sequence[str], num_blocks: Mapping[str, int]
) -> dict[str, int]:
    """The rank of each layer: lora_rank, or that of the last line of rank_pattern whose blocks it is in."""
    ranks = dict.fromkeys(names, lora_rank)
    for number, line in enumerate(rank_pattern):
        field = f"lora.rank_pattern.{number}"
        match = re.fullmatch(r"(.*):\s*(\d+)\s*", line)
        rank = int(match[2]) if match else 0
        if not match or not 1 <= rank <= MAX_RANK:
            raise JobError(f"{field}: {line!r} is not 'blocks: rank' with a rank of 1 to {MAX_RANK}, as in 'single 0-9: 32'")
        blocks = parse_blocks(match[1], num_blocks, field)
        matched = [name for name in names if block_of(name) in blocks]
        if not matched:
            raise JobError(f"{field}: {line!r} matches no adapted layer; remove it, or adapt layers of these blocks too")
        ranks |= dict.fromkeys(matched, rank)
    return ranks


def _custom_modules(linears: list[str], entries: Sequence[str]) -> list[str]:
    wrong = [entry for entry in entries if not any(_ends_with(name, entry.strip()) for name in linears)]
    if wrong:
        raise JobError("\n".join(_no_such_layer(entry, linears) for entry in wrong))
    return [name for name in linears if any(_ends_with(name, entry.strip()) for entry in entries)]


def _no_such_layer(entry: str, linears: list[str]) -> str:
    endings = {".".join(parts[start:]) for name in linears for parts in [name.split(".")] for start in range(len(parts))}
    close = difflib.get_close_matches(entry.strip(), sorted(endings), n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "names end as in attn.to_q, ff.net.2 or proj_out"
    return f"lora.peft_lora_target_modules: {entry!r} is the name or ending of no linear layer of this base; {hint}"


def _ends_with(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")
