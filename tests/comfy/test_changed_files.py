"""A changed caption makes another run, whatever ComfyUI has cached; nothing else does."""

from pathlib import Path

from comfy_client import queue
from comfy_server import Server
from graphs import Prompt, change, only

from support import make_pictures


def test_a_changed_caption_is_trained_anew(server: Server, example: Prompt, tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "pictures", 2)
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="recaptioned", max_train_steps=1)
    prompt = change(prompt, "DatasetBucket", path=str(folder))
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    prompt = change(prompt, "TrainingOptions", train_batch_size=1)
    for _ in range(2):
        assert queue(server.url, prompt).status == "success"
        assert len(list(server.runs_dir.glob("recaptioned-*"))) == 1
    caption = next(iter(sorted(folder.glob("*.txt"))))
    caption.write_text("something else entirely", encoding="utf-8")
    assert queue(server.url, prompt).status == "success"
    assert len(list(server.runs_dir.glob("recaptioned-*"))) == 2
