"""TrainingPlan in a real ComfyUI: a report, a chart, and TrainLoRA's refusal of what cannot fit."""

from comfy_client import queue
from comfy_server import Server
from graphs import Prompt, change, find, only, picture


def plan_graph(example: Prompt) -> Prompt:
    """The example's model and pictures into a plan, its report and chart shown."""
    parts = only(example, "LoadFluxForTraining") | only(example, "DatasetBucket")
    inputs = {"model": [find(parts, "LoadFluxForTraining"), 0], "dataset": [find(parts, "DatasetBucket"), 0], "probe": True}
    return parts | {
        "plan": {"class_type": "TrainingPlan", "inputs": inputs},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["plan", 0]}},
        "chart": {"class_type": "SaveImage", "inputs": {"images": ["plan", 1], "filename_prefix": "plan"}},
    }


def test_the_plan_says_and_draws_what_each_phase_needs(server: Server, example: Prompt) -> None:
    outcome = queue(server.url, plan_graph(example))
    assert outcome.status == "success", outcome.error
    report = outcome.outputs["report"]["text"][0]
    assert "verdict: fits" in report and "a step takes about" in report
    assert [line.split("  ")[0] for line in report.splitlines()[1:6]] == [
        "encode pictures",
        "encode captions",
        "load",
        "train",
        "pictures",
    ]
    assert picture(server.output_dir, outcome.outputs["chart"]["images"][0]).width == 840


def test_a_run_that_cannot_fit_is_refused_with_what_would(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="huge", max_train_steps=1)
    prompt = change(prompt, "DatasetBucket", resolution=2048)
    prompt = change(prompt, "TrainingOptions", train_batch_size=1024, gradient_checkpointing=False)
    outcome = queue(server.url, prompt)
    assert (outcome.status, outcome.error_node) == ("error", "TrainLoRA")
    assert "does not fit" in outcome.error and "skip_memory_check" in outcome.error
