"""--disable-metadata holds for LoRA files as for pictures: who starts ComfyUI with it shares no graph by accident."""

import json
from pathlib import Path

import pytest
from comfy_client import queue
from comfy_server import Server, start_server
from graphs import EXAMPLE, Prompt, change, load_workflow, only
from safetensors import safe_open


@pytest.mark.slow  # a server of its own, for one flag
def test_a_lora_trained_without_metadata_holds_no_graph(server: Server, example: Prompt, tmp_path: Path) -> None:
    silent = start_server(server.comfyui, Path(server.command[0]), tmp_path, "--disable-metadata")
    try:
        prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="silent", max_train_steps=1)
        prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
        outcome = queue(silent.url, prompt, workflow=load_workflow(EXAMPLE))
        assert outcome.status == "success", outcome.error
        lora = next((silent.output_dir / "loras").glob("silent-*.safetensors"))
        with safe_open(lora, framework="np") as file:
            assert not {"workflow", "prompt"} & file.metadata().keys()
        run_id = lora.stem
        assert silent.get(f"/flux_lora/runs/{run_id}/workflow") == {"workflow": None, "prompt": None}
        assert "nodes" not in json.dumps(json.loads((silent.runs_dir / run_id / "job.json").read_text())["metadata"])
    finally:
        silent.stop()
