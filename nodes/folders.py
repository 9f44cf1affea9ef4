"""Where the nodes keep things: all of it below ComfyUI's output folder. The getters are asked each time, for flags move it."""

from pathlib import Path

import folder_paths


def output_dir() -> Path:
    return Path(folder_paths.get_output_directory()).absolute()


def home_dir() -> Path:
    """Runs, caches, and datasets made from the graph's pictures."""
    return output_dir() / "flux_lora"


def datasets_dir() -> Path:
    """Pictures that came along a wire."""
    return home_dir() / "datasets"


def loras_dir() -> Path:
    """A folder of LoRAs that ComfyUI's loaders look into."""
    return output_dir() / "loras"


def input_dir() -> Path:
    return Path(folder_paths.get_input_directory()).absolute()
