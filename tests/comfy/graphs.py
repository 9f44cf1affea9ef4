"""The graphs of the tests: the example workflow as it ships, shortened, and changes to it."""

import copy
import json
from pathlib import Path
from typing import Any

from comfy_server import PACK_ROOT
from PIL import Image

EXAMPLES = sorted((PACK_ROOT / "example_workflows").glob("*.json"))
EXAMPLE = PACK_ROOT / "example_workflows" / "Train a LoRA and test it.json"
STEPS, SAMPLER_STEPS = 4, 6
TRIGGER = "ohwx"

Prompt = dict[str, Any]


def load_workflow(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def find(prompt: Prompt, class_type: str) -> str:
    """The id of the first node of this class."""
    return next(node_id for node_id, node in prompt.items() if node["class_type"] == class_type)


def change(prompt: Prompt, class_type: str, **inputs: Any) -> Prompt:
    """The graph with other inputs on every node of this class."""
    changed = copy.deepcopy(prompt)
    matching = [node for node in changed.values() if node["class_type"] == class_type]
    assert matching, class_type
    for node in matching:
        node["inputs"].update(inputs)
    return changed


def only(prompt: Prompt, *class_types: str) -> Prompt:
    """The first nodes of these classes, and all that they need."""
    wanted, kept = [find(prompt, class_type) for class_type in class_types], {}
    while wanted:
        node_id = wanted.pop()
        kept[node_id] = copy.deepcopy(prompt[node_id])
        wanted += [value[0] for value in prompt[node_id]["inputs"].values() if isinstance(value, list)]
    return kept


def picture(output_dir: Path, shown: dict[str, str]) -> Image.Image:
    """A picture as /history names it."""
    with Image.open(output_dir / shown["subfolder"] / shown["filename"]) as file:
        return file.convert("RGB")
