"""From a description of a graph to the workflow that ComfyUI saves: format 0.4, nodes in columns, columns in groups.

A description names inputs and widgets; their order, which the format rests on, comes from what the nodes say of themselves.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Info = dict[str, Any]
WIDGETS = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
SEEDS = frozenset({"seed", "noise_seed"})  # behind these the browser puts a widget of its own, "control after generate"
ROW, WIDGET, TEXT, FOOT = 20, 24, 110, 14  # pixels: a socket, a widget, a text of several lines, the end of a node
TALL, TALL_FOOT = 30, 50  # a widget and the end of a node in Nodes 2.0, with room for a button of the page's
TITLE, GAP, NODES_APART, GROUPS_APART, MARGIN = 30, 60, 50, 60, 20
GROUP_TITLE = 50
COLOURS = ("#3f789e", "#b58b2a", "#8A8", "#88A", "#A88")


@dataclass(frozen=True)
class Node:
    """A node: its kind, which inputs are linked (`key` or `key.output`), and the widgets that do not stand at their default."""

    key: str
    kind: str
    links: Mapping[str, str] = field(default_factory=dict)
    widgets: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    across: int = 340
    picture: int = 0  # pixels of height for the pictures that it will show


@dataclass(frozen=True)
class Group:
    """A titled frame around columns of nodes."""

    title: str
    columns: tuple[tuple[Node, ...], ...]


@dataclass(frozen=True)
class Workflow:
    """`notes` stand above the groups, from left to right: a title and a text in Markdown."""

    name: str
    notes: tuple[tuple[str, str], ...]
    groups: tuple[Group, ...]


def to_workflow(described: Workflow, info: Info) -> dict[str, Any]:
    """What the browser would save. KeyError or ValueError where the description does not fit the nodes."""
    nodes = [node for group in described.groups for column in group.columns for node in column]
    ids = {node.key: number for number, node in enumerate(nodes, 1)}
    assert len(ids) == len(nodes), f"{described.name}: a key is used twice"
    kinds = {node.key: node.kind for node in nodes}
    links = [
        [number, *_source(source, ids, kinds, info), ids[node.key], _slots(info[node.kind]).index(name), ""]
        for number, (node, name, source) in enumerate(
            ((node, name, node.links[name]) for node in nodes for name in _slots(info[node.kind]) if name in node.links), 1
        )
    ]
    for link in links:
        link[5] = info[nodes[link[1] - 1].kind]["output"][link[2]]
    places, frames = _lay_out(described, info)
    saved = [_save(node, ids[node.key], places[node.key], links, info) for node in nodes]
    notes = [_note(len(nodes) + 1 + number, *note, number, described) for number, note in enumerate(described.notes)]
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"flux-lora-studio/{described.name}")),
        "revision": 0,
        "last_node_id": len(nodes) + len(notes),
        "last_link_id": len(links),
        "nodes": [*saved, *notes],
        "links": links,
        "groups": frames,
        "config": {},
        "extra": {"ds": {"scale": 0.5, "offset": [80, NOTE_HEIGHT + 160]}},
        "version": 0.4,
    }


NOTE_WIDTH, NOTE_HEIGHT = 620, 190


def _source(source: str, ids: Mapping[str, int], kinds: Mapping[str, str], info: Info) -> tuple[int, int]:
    """Number of the node and of its output, for `key` (its first output) or `key.output`."""
    key, _, output = source.partition(".")
    return ids[key], info[kinds[key]]["output_name"].index(output) if output else 0


def _inputs(node_info: Info) -> dict[str, list[Any]]:
    return {name: given for group in ("required", "optional") for name, given in node_info["input"].get(group, {}).items()}


def _slots(node_info: Info) -> list[str]:
    """Every input that can be linked; a widget can, too."""
    return list(_inputs(node_info))


def _is_widget(given: list[Any]) -> bool:
    return isinstance(given[0], list) or given[0] in WIDGETS


def _save(node: Node, number: int, place: tuple[int, int], links: list[list[Any]], info: Info) -> dict[str, Any]:
    told = info[node.kind]
    inputs, known = [], _inputs(told)
    wrong = [name for name in (*node.links, *node.widgets) if name not in known]
    if wrong:
        raise ValueError(f"{node.kind} has no {', '.join(wrong)}")
    for slot, (name, given) in enumerate(known.items()):
        link = next((link[0] for link in links if link[3] == number and link[4] == slot), None)
        entry = {"name": name, "type": "COMBO" if isinstance(given[0], list) else given[0], "link": link}
        if _is_widget(given):
            entry["widget"] = {"name": name}
        elif name in told["input"].get("optional", {}):
            entry["shape"] = 7
        inputs.append(entry)
    outputs = [
        {"name": name, "type": kind, "links": [link[0] for link in links if link[1:3] == [number, slot]] or None}
        for slot, (name, kind) in enumerate(zip(told["output_name"], told["output"], strict=True))
    ]
    return {
        "id": number,
        "type": node.kind,
        "pos": list(place),
        "size": [node.across, _height(node, told)],
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        **({"title": node.title} if node.title else {}),
        "properties": {"Node name for S&R": node.kind},
        "widgets_values": _values(node, told),
    }


def _values(node: Node, told: Info) -> list[Any]:
    """The widgets' values in the order of the format."""
    values: list[Any] = []
    for name, given in _inputs(told).items():
        if not _is_widget(given):
            continue
        kind, options = given[0], given[1] if len(given) > 1 else {}
        first = kind[0] if isinstance(kind, list) else options["options"][0] if kind == "COMBO" else ""
        values.append(node.widgets.get(name, options.get("default", first)))
        if kind == "INT" and (options.get("control_after_generate") or name in SEEDS):
            values.append("fixed")
    return values


def _height(node: Node, told: Info, widget: int = WIDGET, foot: int = FOOT) -> int:
    """About what the browser will make of it, with widgets and an end of these heights."""
    given = list(_inputs(told).values())
    sockets = max(sum(not _is_widget(one) for one in given), len(told["output"]))
    texts = sum(bool(one[1].get("multiline")) for one in given if len(one) > 1)
    return ROW * sockets + widget * (len(_values(node, told)) - texts) + TEXT * texts + foot + node.picture


def _lay_out(described: Workflow, info: Info) -> tuple[dict[str, tuple[int, int]], list[dict[str, Any]]]:
    """Where each node's upper left corner lies, and the groups' frames."""
    places, frames, x = {}, [], 0
    for number, group in enumerate(described.groups):
        left, bottom = x, 0
        x += MARGIN
        for column in group.columns:
            y = GROUP_TITLE + TITLE
            for node in column:
                places[node.key] = (x, y)
                y += _height(node, info[node.kind], TALL, TALL_FOOT) + TITLE + NODES_APART
            x += max(node.across for node in column) + GAP
            bottom = max(bottom, y)
        x += MARGIN - GAP
        frames.append(
            {
                "id": number + 1,
                "title": group.title,
                "bounding": [left, 0, x - left, bottom - TITLE],
                "color": COLOURS[number % len(COLOURS)],
                "font_size": 24,
                "flags": {},
            }
        )
        x += GROUPS_APART
    return places, frames


def _note(node_id: int, title: str, text: str, number: int, described: Workflow) -> dict[str, Any]:
    return {
        "id": node_id,
        "type": "MarkdownNote",
        "pos": [number * (NOTE_WIDTH + GAP), -NOTE_HEIGHT - 60],
        "size": [NOTE_WIDTH, NOTE_HEIGHT],
        "flags": {},
        "order": node_id - 1,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": title,
        "properties": {},
        "widgets_values": [text],
        "color": "#432",
        "bgcolor": "#653",
    }
