"""From the workflow that a user saves to the prompt that the server runs, by what /object_info says of the nodes.

The browser does this in `graphToPrompt`. A saved node holds its widgets' values as a bare list, so the order of the widgets is
part of the format: this conversion notices when a node's inputs were reordered under a saved workflow.
"""

from typing import Any

WIDGET_TYPES = frozenset({"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"})
NOTES = frozenset({"Note", "MarkdownNote"})
SEEDS = frozenset({"seed", "noise_seed"})  # behind these the browser puts a widget of its own, "control after generate"

ObjectInfo = dict[str, Any]


def to_prompt(workflow: dict[str, Any], info: ObjectInfo) -> dict[str, Any]:
    """Node id -> class and inputs. ValueError when the workflow does not fit the nodes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    nodes = [node for node in workflow["nodes"] if node["type"] not in NOTES]
    return {str(node["id"]): _convert(node, sources, info) for node in nodes}


def widget_names(node_info: dict[str, Any]) -> list[str | None]:
    """The widgets in the order in which their values are saved; None for one that only the browser has."""
    names: list[str | None] = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in node_info["input"].get(group, {}).items():
            options = rest[0] if rest else {}
            if options.get("forceInput") or not (isinstance(kind, list) or kind in WIDGET_TYPES):
                continue
            names.append(name)
            if options.get("control_after_generate") or (kind == "INT" and name in SEEDS):
                names.append(None)
    return names


def _convert(node: dict[str, Any], sources: dict[int, list[Any]], info: ObjectInfo) -> dict[str, Any]:
    kind = node["type"]
    if kind not in info:
        raise ValueError(f"there is no node {kind}")
    names, values = widget_names(info[kind]), node.get("widgets_values", [])
    if len(names) != len(values):
        raise ValueError(f"{kind} has the widgets {names}, the workflow {values}")
    inputs = {name: value for name, value in zip(names, values, strict=True) if name is not None}
    linked = {entry["name"]: sources[entry["link"]] for entry in node["inputs"] if entry.get("link") is not None}
    known = {name for group in ("required", "optional") for name in info[kind]["input"].get(group, {})}
    if not linked.keys() <= known:
        raise ValueError(f"{kind} has no input {sorted(linked.keys() - known)}")
    if missing := info[kind]["input"].get("required", {}).keys() - inputs.keys() - linked.keys():
        raise ValueError(f"{kind} lacks {sorted(missing)}")
    return {"class_type": kind, "inputs": inputs | linked}
