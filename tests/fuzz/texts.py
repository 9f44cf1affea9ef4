"""What reads texts and tables that may come from anybody. Needs no torch."""

import io
import json
from pathlib import Path

from trainer_core.data.captions import caption_reader
from trainer_core.data.find import find_files
from trainer_core.event_file import newest_events, read_page
from trainer_core.graph import read_graph
from trainer_core.graph_job import ComfyFolders, export_job
from trainer_core.importers.simpletuner import import_config
from trainer_core.importers.simpletuner_model import Swaps
from trainer_core.job import TrainJob
from trainer_core.job_file import dump_job, load_job, parse_job
from trainer_core.run_dir import PICTURE_SUFFIXES, RunDir
from trainer_core.runs import summarise
from trainer_core.saved import FINAL, find_lora
from trainer_core.specs.dataset import DatasetSpec
from trainer_core.specs.prompts import parse_library

from .target import ROOT, Target, written


def _job_seeds(folder: Path) -> list[bytes]:
    data = {"name": "a", "datasets": [{"instance_data_dir": "pictures"}], "routes": [{"start_layer_idx": 1}]}
    whole = parse_job({**data, "routes": [], "validation": {"validation_prompts": ["a ball"]}})
    return [json.dumps(data).encode(), dump_job(whole).encode()]


def _read_job(data: bytes, folder: Path) -> None:
    job = load_job(written(folder, "job.json", data))
    assert isinstance(job, TrainJob) and parse_job(json.loads(dump_job(job))) is not None


def _caption_seeds(folder: Path) -> list[bytes]:
    texts = ["a ball, red, __colour__ on grass\nanother ball\n", "ein Bär, кот\r\n", ""]
    return [*(text.encode() for text in texts), texts[0].encode("utf-16"), texts[1].encode("utf-8-sig")]


def _read_caption(data: bytes, folder: Path) -> None:
    (folder / "ball.png").touch()
    written(folder, "ball.txt", data)
    (folder / "wild").mkdir(exist_ok=True)
    written(folder / "wild", "colour.txt", data)
    for more in ({}, {"multiline_captions": True}, {"shuffle_tags": True, "wildcards_dir": str(folder / "wild")}):
        read = caption_reader(DatasetSpec(instance_data_dir=str(folder), **more), folder)
        for picture in find_files(folder, PICTURE_SUFFIXES).files:
            assert all(isinstance(caption, str) for caption in read(picture))


def _control_seeds(folder: Path) -> list[bytes]:
    return [b'{"command": "stop"}', b'{"command": "sample", "prompt": "a red ball"}']


def _read_control(data: bytes, folder: Path) -> None:
    written(folder, "control-1.json", data)
    RunDir(folder).take_commands()
    assert not list(folder.glob("control*"))


def _prompt_seeds(folder: Path) -> list[bytes]:
    return [(ROOT / "tests" / "simpletuner" / "user_prompt_library.json").read_bytes(), b'{"a": {"prompt": "b", "seed": 7}}']


def _read_prompts(data: bytes, folder: Path) -> None:
    parse_library(data.decode("utf-8", "surrogateescape"))


def _table_seeds(folder: Path) -> list[bytes]:
    import pyarrow
    from pyarrow.parquet import write_table

    rows = [{"filename": "ball.png", "caption": "a ball"}, {"filename": "b.png", "caption": None}]
    table = io.BytesIO()
    write_table(pyarrow.Table.from_pylist(rows), table)
    return [
        b'filename,caption\r\nball.png,"a ball, red"\r\nb.png,\r\n',
        "filename;caption\nball;Bär\n".encode("cp1252"),
        "\n".join(map(json.dumps, rows)).encode(),
        table.getvalue(),
    ]


def _read_tables(data: bytes, folder: Path) -> None:
    (folder / "ball.png").touch()
    kind = "parquet" if data[:3] == b"PAR" else "jsonl" if data.lstrip()[:1] == b"{" else "csv"
    written(folder, f"table.{kind}", data)
    spec = DatasetSpec(
        instance_data_dir=str(folder), caption_strategy=kind, caption_table=f"table.{kind}", missing_caption="filename"
    )
    read = caption_reader(spec, folder)
    for picture in find_files(folder, PICTURE_SUFFIXES).files:
        read(picture)


def _workflow_seeds(folder: Path) -> list[bytes]:
    inputs = {
        "1": {"class_type": "LoadFluxForTraining", "inputs": {"model_flavour": "pico", "mixed_precision": "no"}},
        "2": {"class_type": "DatasetBucket", "inputs": {"path": "/first", "resolution": "48, 64"}},
        "4": {"class_type": "TREADRoute", "inputs": {"start_layer_idx": 1, "end_layer_idx": 2}},
        "10": {"class_type": "TrainLoRA", "inputs": {"model": ["1", 0], "dataset": ["2", 0], "name": "a", "routes": ["4", 0]}},
    }
    saved = [ROOT / "example_workflows" / f"{name}.json" for name in ("Train a LoRA and test it", "Faster steps with TREAD")]
    return [json.dumps(inputs).encode(), *(path.read_bytes() for path in saved)]


def _read_workflow(data: bytes, folder: Path) -> None:
    graph = read_graph(written(folder, "workflow.json", data))
    export_job(graph, ComfyFolders(comfyui=folder))


def _simpletuner_seeds(folder: Path) -> list[bytes]:
    options = {
        "--model_family": "flux",
        "--model_flavour": "dev",
        "--learning_rate": 1e-4,
        "--lora_rank": "16",
        "--max_train_steps": 500,
        "--optimizer": "adamw_bf16",
        "--resolution": 512,
        "--tread_config": {"routes": [{"selection_ratio": 0.5, "start_layer_idx": 2, "end_layer_idx": -2}]},
        "--validation_prompt": "a ball",
        "--flux_guidance_value": 1.0,
        "--data_backend_config": "config/multidatabackend.json",
        "TRAINER_EXTRA_ARGS": "--lr_warmup_steps=10 --seed 3",
    }
    lines = "\n".join(f"export {name.strip('-').upper()}='{value}'" for name, value in options.items())
    return [json.dumps(options).encode(), lines.encode(), _backends().read_bytes()]


def _backends() -> Path:
    return ROOT / "tests" / "simpletuner" / "multidatabackend.json"


def _read_simpletuner(data: bytes, folder: Path) -> None:
    config = folder / "config"
    config.mkdir(exist_ok=True)
    is_list = data.lstrip()[:1] == b"["
    written(config, "multidatabackend.json", data if is_list else _backends().read_bytes())
    given = json.dumps({"model_family": "flux", "data_backend_config": "config/multidatabackend.json"}).encode()
    path = written(config, "config.json" if data.lstrip()[:1] in (b"{", b"[") else "config.env", given if is_list else data)
    import_config(path, config / "multidatabackend.json", Swaps(base="pico"), partly=True)


def _run_seeds(folder: Path) -> list[bytes]:
    events = [{"event": "started", "time": 1.0, "steps": 6, "resumed_from": 0}, {"event": "step", "step": 3, "loss": 0.5}]
    result = {
        "lora": "a.safetensors",
        "before_after": "a.png",
        "samples": ["a.png"],
        "steps": 6,
        "losses": [0.5],
        "evaluations": [],
    }
    told = "".join(json.dumps(event) + "\n" for event in events).encode()
    return [
        told,
        json.dumps(result).encode(),
        json.dumps(result | {"digests": {"a.safetensors": ""}}).encode(),
        *_job_seeds(folder),
    ]


def _read_run(data: bytes, folder: Path) -> None:
    """What the server says of a run whose files somebody has spoilt."""
    for name in ("events.jsonl", "job.json", "result.json", "child.log"):
        written(folder, name, data)
    summarise(RunDir(folder))
    newest_events(folder / "events.jsonl", {"last": {"step"}})
    read_page(folder / "events.jsonl", 0)
    if RunDir(folder).intact_result():
        find_lora(RunDir(folder), FINAL)


TEXTS = {
    "job": Target(_job_seeds, _read_job),
    "captions": Target(_caption_seeds, _read_caption),
    "control": Target(_control_seeds, _read_control),
    "prompts": Target(_prompt_seeds, _read_prompts),
    "tables": Target(_table_seeds, _read_tables),
    "workflow": Target(_workflow_seeds, _read_workflow),
    "simpletuner": Target(_simpletuner_seeds, _read_simpletuner),
    "run": Target(_run_seeds, _read_run),
}
