"""Run every example on pico, and make the picture beside it: python -m tools.workflows.pictures [NAME ...]  (minutes)

ComfyUI shows `NAME.jpg` for `NAME.json` in its list of templates, as a square. Above is what the base makes of two prompts,
below what it makes with the LoRA; where another picture says more, it stands in `PICTURES`.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from tests.comfy.comfy_client import Outcome, queue
from tests.comfy.comfy_server import HOW_TO_GET_ONE, Server, find_comfyui, find_python, start_server
from tests.comfy.workflow import to_prompt

from .examples import EXAMPLES
from .graph import Workflow, to_workflow

FOLDER = Path(__file__).parents[2] / "example_workflows"
EDGE = 448  # pixels
MINUTES = 30
Prompt = dict[str, Any]


def before_and_after(server: Server, prompt: Prompt, outcome: Outcome) -> Image.Image:
    """Two prompts by the base, above, and by the LoRA."""
    samples = _run_dir(server, prompt) / "samples"
    steps = sorted(samples.iterdir())
    return _grid([picture for step in (steps[0], steps[-1]) for picture in sorted(step.glob("*.png"))[:2]])


def both_saved(server: Server, prompt: Prompt, outcome: Outcome) -> Image.Image:
    """Two pictures of each SaveImage, side by side."""
    saved = [_files(server, outcome, node)[:2] for node, one in prompt.items() if one["class_type"] == "SaveImage"]
    return _grid([saved[0][0], saved[1][0], saved[0][1], saved[1][1]])


def first_preview(server: Server, prompt: Prompt, outcome: Outcome) -> Image.Image:
    """What the last PreviewImage shows, whole, on white."""
    node = [node for node, one in prompt.items() if one["class_type"] == "PreviewImage"][-1]
    with Image.open(_files(server, outcome, node)[0]) as file:
        shown = file.convert("RGB")
    shown.thumbnail((EDGE, EDGE), Image.Resampling.LANCZOS)
    square = Image.new("RGB", (EDGE, EDGE), "white")
    square.paste(shown, ((EDGE - shown.width) // 2, (EDGE - shown.height) // 2))
    return square


PICTURES: dict[str, Callable[[Server, Prompt, Outcome], Image.Image]] = {
    "Guidance 1 and guidance 3.5": both_saved,
    "Compare checkpoints": first_preview,
    "Small card, low memory": first_preview,
}


def picture(server: Server, example: Workflow, info: dict[str, Any]) -> str:
    """Run one and write its picture; returns how long it took, in words. RuntimeError where it fails."""
    workflow = to_workflow(example, info)
    prompt = to_prompt(workflow, info)
    outcome = queue(server.url, prompt, workflow=workflow, timeout=60 * MINUTES)
    if outcome.status != "success":
        raise RuntimeError(f"{example.name}: {outcome.status} {outcome.error_node} {outcome.error}")
    made = PICTURES.get(example.name, before_and_after)(server, prompt, outcome)
    made.save(FOLDER / f"{example.name}.jpg", quality=85, optimize=True)
    return f"{example.name}: {outcome.seconds:.0f} s"


def _run_dir(server: Server, prompt: Prompt) -> Path:
    name = next(one["inputs"]["name"] for one in prompt.values() if one["class_type"] == "TrainLoRA")
    return next(server.runs_dir.glob(f"{name}-*"))


def _files(server: Server, outcome: Outcome, node: str) -> list[Path]:
    """The pictures that a node has shown, as files."""
    return [
        server.base_dir / image["type"] / image["subfolder"] / image["filename"] for image in outcome.outputs[node]["images"]
    ]


def _grid(paths: list[Path]) -> Image.Image:
    """Four pictures in a square."""
    square, half = Image.new("RGB", (EDGE, EDGE)), EDGE // 2
    for number, path in enumerate(paths):
        with Image.open(path) as file:
            fitted = ImageOps.fit(file.convert("RGB"), (half, half), Image.Resampling.LANCZOS)
        square.paste(fitted, (number % 2 * half, number // 2 * half))
    return square


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.workflows.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", help="only these examples")
    arguments = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error(HOW_TO_GET_ONE)
    wanted = [example for example in EXAMPLES if not arguments.names or example.name in arguments.names]
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(comfyui, find_python(comfyui), Path(folder) / "comfyui")
        try:
            info = server.get("/object_info")
            for example in wanted:
                print(picture(server, example, info), flush=True)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
