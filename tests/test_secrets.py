"""What the owner's environment holds of keys is in no file of a run, looked for in every one of them; and nothing calls out."""

import socket
import sys
from pathlib import Path

from support import job_data, run_in_process
from trainer_core.job_file import parse_job

CANARY = "canary-4cd1e0b7f2"
OUTWARD = {"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind"}
NAMES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "HTTPS_PROXY", "GITHUB_TOKEN")


def test_no_file_of_a_run_holds_a_key_of_the_environment(pictures, tmp_path, cache, monkeypatch):
    for name in NAMES:
        monkeypatch.setenv(name, f"http://{CANARY}:{CANARY}@localhost" if "PROXY" in name else f"hf_{CANARY}{name}")
    job = parse_job(job_data(pictures, training={"max_train_steps": 2, "report_to": "tensorboard"}))
    result = run_in_process(job, tmp_path / "runs", cache)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.name for path in files}
    assert {"job.json", "events.jsonl", "manifest.json", "optimizer.safetensors", Path(result["lora"]).name} <= kinds
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


def test_a_training_opens_no_connection(pictures, tmp_path, cache):
    seen: list[str] = []
    watched = [True]  # a hook stays for as long as the process lives
    sys.addaudithook(lambda event, arguments: seen.append(f"{event} {arguments}") if event in OUTWARD and watched[0] else None)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
    assert [told.partition(" ")[0] for told in seen] == ["socket.bind"], "the hook hears of sockets"
    seen.clear()
    validation = {"num_validation_images": 1, "validation_num_inference_steps": 1}
    training = {"max_train_steps": 2, "report_to": "tensorboard"}
    run_in_process(parse_job(job_data(pictures, training=training, validation=validation)), tmp_path / "runs", cache)
    watched[0] = False
    assert seen == []
