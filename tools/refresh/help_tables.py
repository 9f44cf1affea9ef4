"""The tables in the help pages, `web/docs/<Id>.md`, between two markers each: the inputs, and what the presets set.

The rest of a page is written by hand.
"""

from pathlib import Path
from typing import Any

from trainer_core.presets import CARDS

from .texts import ROOT

PAGES = ROOT / "web" / "docs"
BEGIN, END = "<!-- inputs: made by python -m tools.refresh -->", "<!-- end of inputs -->"
PRESETS = ("<!-- presets: made by python -m tools.refresh -->", "<!-- end of presets -->")
Info = dict[str, Any]


def page_path(node_id: str) -> Path:
    return PAGES / f"{node_id}.md"


def with_table(page: str, inputs: list[Info], texts: Info) -> str:
    """The page with the table of these inputs, at its end where it has none yet."""
    page = _between(page, *PRESETS, make_presets_table())
    if BEGIN not in page:
        page = f"{page.rstrip()}\n\n## Inputs\n\n{BEGIN}\n{END}\n"
    return _between(page, BEGIN, END, make_table(inputs, texts))


def _between(page: str, begin: str, end: str, table: str) -> str:
    """The page with the table between its markers, as it is where it has none."""
    before, found, rest = page.partition(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}" if found else page


def make_presets_table() -> str:
    rows = ["| card | sets | planned for | advice |", "|---|---|---|---|"]
    rows += [
        f"| {card} | {preset.settings()} | {preset.pixels} px, batch size {preset.batch} | {preset.advice} |"
        for card, preset in CARDS.items()
    ]
    return "\n".join(rows)


def make_table(inputs: list[Info], texts: Info) -> str:
    rows = ["| input | default | values | meaning |", "|---|---|---|---|"]
    rows += [
        f"| **{one['name']}** | {_default(one)} | {_values(one)} | {texts['inputs'][one['name']]['tooltip']} |"
        for one in inputs
    ]
    return "\n".join(rows)


def _default(one: Info) -> str:
    if "default" not in one:
        return "*needed*" if one["needed"] else ""
    value = one["default"]
    if isinstance(value, bool):
        return "on" if value else "off"
    shown = str(value).replace("\n", ", ")
    return f"`{shown}`" if shown else "*empty*"


def _values(one: Info) -> str:
    kind = one["type"]
    if kind == "COMBO":
        listed = ", ".join(f"`{option}`" for option in one["options"])
        return f"{listed}, files" if len(one["options"]) == 1 else listed
    if kind in ("INT", "FLOAT"):
        return f"{one['min']:g} to {one['max']:g}" if kind == "FLOAT" else f"{one['min']} to {one['max']}"
    return {"BOOLEAN": "on, off", "STRING": "lines of text" if one.get("multiline") else "text"}.get(kind, f"a {kind}")
