"""A workflow of ComfyUI's as nodes with named inputs, from either form: the one that it saves and the one that it runs.

The API form names every input. The saved form holds widgets' values as a bare list, in the order of the node's inputs that
have a widget; wires are in a list of their own. Muted nodes are left out, and a bypassed one hands on what comes in with the
type of its output, as ComfyUI's browser side does when it queues a graph.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .errors import JobError

MUTED, BYPASSED = 2, 4
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"


class Link(NamedTuple):
    """An output of a node."""

    node: str
    slot: int


class Node(NamedTuple):
    """A node: its class, and each input as a value or as a Link. `problem`: why its widgets cannot be read, if so."""

    kind: str
    inputs: dict[str, Any]
    problem: str = ""


Graph = dict[str, Node]
DAMAGE = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)  # what values of a wrong kind lead to


def is_graph(data: Any) -> bool:
    """Whether this JSON is a workflow, of either form, and not a job."""
    return isinstance(data, dict) and (_is_saved(data) or _is_prompt(data))


def read_graph(path: Path) -> Graph:
    """The nodes of a workflow file; JobError when it is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"there is no workflow {path}") from None
    except (ValueError, RecursionError) as error:
        raise JobError(f"{path} is not JSON: {error}") from None
    return parse_graph(data, str(path))


def parse_graph(data: Any, source: str) -> Graph:
    if not is_graph(data):
        raise JobError(f"{source} is no workflow of ComfyUI's; save one there, or export it with Export (API)")
    try:
        return _from_saved(data, source) if _is_saved(data) else _from_prompt(data)
    except JobError:
        raise
    except DAMAGE as error:
        raise JobError(
            f"{source} is a damaged workflow ({type(error).__name__}: {str(error)[:80]}); open it in ComfyUI and save it again"
        ) from None


def _is_saved(data: dict[str, Any]) -> bool:
    return isinstance(data.get("nodes"), list) and "links" in data


def _is_prompt(data: dict[str, Any]) -> bool:
    return bool(data) and all(isinstance(node, dict) and "class_type" in node and "inputs" in node for node in data.values())


def _from_prompt(data: dict[str, Any]) -> Graph:
    def value(given: Any) -> Any:
        is_link = isinstance(given, list) and len(given) == 2 and str(given[0]) in data
        return Link(str(given[0]), int(given[1])) if is_link else given

    return {
        name: Node(node["class_type"], {key: value(given) for key, given in node["inputs"].items()})
        for name, node in data.items()
    }


def _from_saved(data: dict[str, Any], source: str) -> Graph:
    nodes = {str(node["id"]): node for node in data["nodes"]}
    links = {number: Link(str(origin), int(slot)) for number, origin, slot in map(_ends, data["links"])}
    graph: Graph = {}
    for name, node in nodes.items():
        if node.get("mode", 0) in (MUTED, BYPASSED) or node["type"] in (REROUTE, PRIMITIVE):
            continue
        names, values = _widgets(node), node.get("widgets_values") or []
        inputs = dict(values) if isinstance(values, dict) else dict(zip(names, values, strict=False))
        for entry in node.get("inputs") or ():
            if entry.get("link") is not None:
                found = _followed(links[entry["link"]], nodes, links)
                inputs.pop(entry["name"], None)
                if found is not None:
                    inputs[entry["name"]] = found.inputs["value"] if isinstance(found, Node) else found
        is_short = len(values) < len(names) or (values and not names)
        mend = "open the workflow in ComfyUI and save it again, or use Export (API)"
        problem = f"{source}: node {name} ({node['type']}): {len(names)} widgets and {len(values)} values; {mend}"
        graph[name] = Node(node["type"], inputs, problem if is_short else "")
    return graph


def _ends(link: Any) -> tuple[int, int, int]:
    """Number, origin and slot of a link, which is a list, or an object in newer files."""
    return (link["id"], link["origin_id"], link["origin_slot"]) if isinstance(link, dict) else tuple(link[:3])


def _widgets(node: dict[str, Any]) -> list[str]:
    """The names of the widgets, in the order of their values. What the browser adds of its own stands behind them."""
    return [entry["widget"]["name"] for entry in node.get("inputs") or () if entry.get("widget")]


def _followed(link: Link, nodes: Mapping[str, Any], links: Mapping[int, Link]) -> Link | Node | None:
    """Where a wire really comes from: past reroutes and bypassed nodes. A primitive as a Node; None from a muted one."""
    for _ in range(len(nodes) + 1):
        node = nodes.get(link.node)
        if node is None or node.get("mode", 0) == MUTED:
            return None
        if node["type"] == PRIMITIVE:
            return Node(PRIMITIVE, {"value": (node.get("widgets_values") or [None])[0]})
        inputs = node.get("inputs") or []
        if node["type"] == REROUTE:
            passed = inputs[:1]
        elif node.get("mode", 0) == BYPASSED:
            wanted = node["outputs"][link.slot]["type"]
            passed = [entry for entry in inputs if entry["type"] == wanted][:1]
        else:
            return link
        before = passed[0].get("link") if passed else None
        if before is None:
            return None
        link = links[before]
    raise JobError("the workflow has a ring of reroutes")
