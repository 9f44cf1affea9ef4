"""What the nodes take and give, as saved workflows rely on it: names, order, types, defaults, choices.

A saved node holds the values of its widgets as a bare list, required inputs first, and its links by the number of the output.
So an input may be added at the end and an output too; anything else breaks workflows.
"""

from typing import Any

Info = dict[str, Any]
FROM_FOLDERS = frozenset({"folder", "transformer", "vae", "clip_l", "t5", "assistant_lora", "checkpoint"}) | {
    "lora",
    *(f"lora_{number}" for number in range(1, 5)),
    "tuned",
    "base_model",
}
KEPT = ("default", "min", "max", "step", "multiline", "options")  # as every version of ComfyUI tells it


def describe(nodes: Info) -> Info:
    """Node -> its inputs in the order of saved workflows and its outputs, from what /object_info says of it."""
    return {name: {"inputs": inputs_of(node), "outputs": _outputs(node)} for name, node in nodes.items()}


def inputs_of(node: Info) -> list[Info]:
    """The inputs of one node as flat records. Of a list of files only the first entry, which is no file, is told."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *rest) in node["input"].get(group, {}).items():
            options = {key: value for key, value in (rest[0] if rest else {}).items() if key in KEPT}
            if kind == "COMBO" and name in FROM_FOLDERS:
                options["options"] = options["options"][:1]
            found.append({"name": name, "type": kind, "needed": group == "required", **options})
    return found


def broken_promises(before: Info, now: Info) -> list[str]:
    """What a workflow saved before would stumble over, a line each."""
    found = [f"{name} has gone" for name in before if name not in now]
    for name in before.keys() & now.keys():
        for kind in ("inputs", "outputs"):
            old, new = ([(one["name"], one["type"]) for one in nodes[name][kind]] for nodes in (before, now))
            if new[: len(old)] != old:
                first = next(index for index in range(len(old)) if new[index : index + 1] != old[index : index + 1])
                found.append(f"{name}: the {kind} no longer begin as they did, from {old[first][0]!r} on")
        needed = [one["name"] for one in now[name]["inputs"][len(before[name]["inputs"]) :] if one["needed"]]
        found += [f"{name}: the new input {one!r} is needed, and saved workflows have none" for one in needed]
    return found


def _outputs(node: Info) -> list[Info]:
    return [{"name": name, "type": kind} for name, kind in zip(node["output_name"], node["output"], strict=True)]
