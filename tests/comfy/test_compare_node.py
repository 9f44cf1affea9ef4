"""After training, in ComfyUI: any LoRA of a run is loaded, checkpoints stand side by side, the winner is copied."""

from comfy_client import Outcome, queue
from comfy_server import Server
from graphs import STEPS, Prompt, change, find, only
from test_example import run_dir_of


def comparing(example: Prompt, **inputs: str) -> Prompt:
    """The example's training, compared."""
    train = only(example, "TrainLoRA")
    wishes = {
        "run": [find(train, "TrainLoRA"), 4],
        "checkpoints": "final",
        "strengths": "1.0",
        "save_as": "",
        "winner": "final",
    }
    compare = {"class_type": "CompareCheckpoints", "inputs": wishes | inputs}
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["compare", 1]}}
    grid = {"class_type": "SaveImage", "inputs": {"images": ["compare", 0], "filename_prefix": "grid"}}
    return train | {"compare": compare, "shown": shown, "grid": grid}


def test_the_grid_the_report_and_the_copy_of_the_winner(server: Server, example: Prompt, trained: Outcome) -> None:
    outcome = queue(server.url, comparing(example, save_as="chosen/mine"))
    assert outcome.status == "success", outcome.error
    base, final, note = outcome.outputs["shown"]["text"][0].splitlines()
    assert base == "base" and final == f"step {STEPS}, strength 1" and "set eval_steps_interval" in note
    assert len(outcome.outputs["grid"]["images"]) == 1
    copied = server.output_dir / "loras" / "chosen" / "mine.safetensors"
    (own,) = run_dir_of(server, "pico-demo").glob("*.safetensors")
    assert copied.read_bytes() == own.read_bytes()


def test_a_name_that_leaves_the_folder_and_a_lora_that_is_not_there_are_refused(
    server: Server, example: Prompt, trained: Outcome
) -> None:
    for inputs, said in (
        ({"save_as": "../../mine"}, "leaves the LoRA folder"),
        ({"save_as": "mine", "winner": "best"}, "has no LoRA 'best'; there is: final"),
    ):
        outcome = queue(server.url, comparing(example, **inputs))
        assert outcome.status == "error" and said in outcome.error


def test_a_checkpoint_is_loaded_by_its_name(server: Server, example: Prompt, trained: Outcome) -> None:
    outcome = queue(server.url, change(only(example, "SaveImage"), "LoadTrainedFlux", checkpoint=f"{STEPS}"))
    assert outcome.status == "success", outcome.error
    outcome = queue(server.url, change(only(example, "SaveImage"), "LoadTrainedFlux", checkpoint="7777"))
    assert "has no LoRA '7777'" in outcome.error
