"""Every command of the README and the docs is run, every snippet is a job, every link leads somewhere, every message is said.

Commands of `flux-lora` are run as they are written, on pico, in the folder of a user who has what the pages speak of. A new one
needs nothing here, unless it speaks of a file that is not in `user_folder`. Other commands: test_doc_commands.py.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from doc_pages import (
    INLINE,
    NAMED_TEST,
    PAGES,
    all_commands,
    blocks,
    codes,
    is_said,
    links,
    mentions,
    message_templates,
    name_of,
    rows,
    text_of,
    words_of,
)
from safetensors.torch import load_file, save_file

from support import ROOT, Command, make_pictures
from trainer_core.cli import main
from trainer_core.events import EVENTS_VERSION
from trainer_core.job import TrainJob
from trainer_core.job_file import parse_job
from trainer_core.pico import TRANSFORMER_PATH
from trainer_core.run_dir import RUN_FOLDER_VERSION, RunDir

JOB: dict[str, Any] = {
    "name": "my-subject",
    "base": {"mixed_precision": "no"},
    "datasets": [{"instance_data_dir": "pictures", "resolution": [32]}],
    "lora": {"lora_rank": 2, "lora_blocks": "single 0-1"},
    "validation": {
        "validation_prompts": ["a ball"],
        "validation_resolution": "32x32",
        "validation_num_inference_steps": 1,
        "validation_guidance_real": 1,
        "num_held_out": 1,
        "eval_steps_interval": 2,
        "eval_timesteps": 1,
    },
    "training": {
        "max_train_steps": 2,
        "checkpoint_step_interval": 1,
        "gradient_checkpointing": False,
        "use_ema": True,
        "device": "cpu",
    },
}
SIMPLETUNER = {
    "--model_family": "flux",
    "--model_flavour": "dev",
    "--pretrained_model_name_or_path": "models",
    "--data_backend_config": "config/multidatabackend.json",
    "--max_train_steps": 2,
    "--num_train_epochs": 0,
}
WORKFLOW = {  # the form that ComfyUI runs, of the same kind as JOB
    "1": {"class_type": "LoadFluxForTraining", "inputs": {"model_flavour": "pico", "mixed_precision": "no"}},
    "2": {"class_type": "DatasetBucket", "inputs": {"path": "pictures", "resolution": "32"}},
    "3": {"class_type": "ValidationConfig", "inputs": {"num_validation_images": 0}},
    "4": {
        "class_type": "TrainLoRA",
        "inputs": {"model": ["1", 0], "dataset": ["2", 0], "validation": ["3", 0], "name": "graph", "max_train_steps": 1},
    },
}


def as_saved(prompt: dict[str, Any]) -> dict[str, Any]:
    """The form that ComfyUI saves, of the form that it runs."""
    nodes, links = [], []
    for name, node in prompt.items():
        wires = {given: value for given, value in node["inputs"].items() if isinstance(value, list)}
        widgets = {given: value for given, value in node["inputs"].items() if given not in wires}
        inputs: list[dict[str, Any]] = [
            {"name": given, "type": "T", "link": None, "widget": {"name": given}} for given in widgets
        ]
        for given, (source, slot) in wires.items():
            links.append([len(links) + 1, int(source), slot, int(name), len(inputs), "T"])
            inputs.append({"name": given, "type": "T", "link": len(links)})
        nodes.append({"id": int(name), "type": node["class_type"], "inputs": inputs, "widgets_values": [*widgets.values()]})
    return {"nodes": nodes, "links": links, "version": 0.4}


STANDS_FOR = {"~/ComfyUI": "ComfyUI"}  # and RUN_DIR, for the run of JOB
SLOW = {  # command -> why it is not in the default suite; FLUX_LORA_SLOW=1 runs it
    "flux-lora demo": "trains 400 steps and makes 20 pictures",
    "flux-lora check job.json": "rehearses the plan of another job; test_cli.py checks one",
}
PACK = ("trainer_core", "nodes", "tools", "web", "docs")
OURS = [command for command in all_commands() if words_of(command)[0] == "flux-lora"]


@pytest.fixture(scope="module")
def user_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who has trained JOB."""
    folder = tmp_path_factory.mktemp("user")
    make_pictures(folder / "pictures")
    longer = {**JOB, "training": JOB["training"] | {"max_train_steps": 3}}
    backends = [{"id": "pictures", "instance_data_dir": "pictures", "caption_strategy": "textfile"}]
    files = {
        "JOB.json": JOB,
        "job.json": JOB,
        "NEW.json": longer,
        "WORKFLOW.json": WORKFLOW,
        "workflow.json": as_saved(WORKFLOW),
    }
    files |= {"config/config.json": SIMPLETUNER, "config/multidatabackend.json": backends}
    (folder / "config").mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    for name in ("models", "ComfyUI/comfy/sd1_tokenizer", "ComfyUI/comfy/text_encoders/t5_tokenizer", "ComfyUI/input"):
        (folder / name).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = Command("run", "JOB.json")
    assert trained.code == 0, trained.stderr
    for name in ("LORA", "OTHER"):
        shutil.copy(trained.report["lora"], folder / f"{name}.safetensors")
    (folder / "BASE.safetensors").symlink_to(TRANSFORMER_PATH)
    (folder / "TUNED.safetensors").symlink_to(tuned(tmp_path_factory.mktemp("tuned") / "tuned.safetensors"))
    (folder / "RUN_DIR").write_text(trained.report["run_id"], encoding="utf-8")
    return folder


def tuned(path: Path) -> Path:
    """Pico's transformer with something trained into one of its layers."""
    tensors = load_file(TRANSFORMER_PATH)
    name = next(name for name, tensor in tensors.items() if name.endswith("img_attn.proj.weight"))
    tensors[name] = tensors[name] + torch.ones_like(tensors[name]) / 64
    save_file(tensors, path)
    return path


@pytest.fixture
def at_home(user_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In a copy of that folder."""
    shutil.copytree(user_folder, tmp_path / "home", symlinks=True)
    monkeypatch.chdir(tmp_path / "home")
    yield tmp_path / "home"


def run_at(home: Path, command: str) -> int:
    """The exit code of the command there; `ask` finds a process that holds the run."""
    run_dir = home / "runs" / (home / "RUN_DIR").read_text(encoding="utf-8")
    words = [STANDS_FOR.get(word, str(run_dir) if word == "RUN_DIR" else word) for word in words_of(command)]
    with ExitStack() as stack:
        if words[1] == "ask":
            stack.enter_context(RunDir(run_dir).owned())
        try:
            return main(words[1:])
        except SystemExit as end:  # of --help, and of words that the parser refuses
            return int(end.code or 0)


@pytest.mark.parametrize("command", [command for command in OURS if command not in SLOW])
def test_a_command_does_what_a_page_says(command: str, at_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_at(at_home, command) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("command", [command for command in OURS if command in SLOW])
def test_a_long_command_does_what_a_page_says(command: str, at_home: Path) -> None:
    assert run_at(at_home, command) == 0


def test_what_is_left_to_the_slow_tier_is_on_a_page() -> None:
    assert set(SLOW) <= set(OURS)


def test_mentioned_commands_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert not [name for page in PAGES for name in mentions(text_of(page)) if not re.search(rf"^    {name}\b", told, re.M)]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for file, quoted, bare in NAMED_TEST.findall(text_of(page)):
        names = re.findall(r"^(?:async )?def (test_\w+)", text_of(ROOT / file), re.MULTILINE)
        wanted = re.split(r"\s+or\s+", quoted or bare or "test_")
        assert not [part for part in wanted if not any(part in name for name in names)], f"{file} -k {wanted}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_pictures_of_a_page_are_there(page: Path) -> None:
    assert not [link for link in links(text_of(page)) if not (page.parent / link).exists()]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(text_of(page), "json")], ids=name_of)
def test_the_snippets_of_a_page_are_jobs_or_parts_of_one(page: Path) -> None:
    for snippet in blocks(text_of(page), "json"):
        part = json.loads(snippet)
        job = {"datasets": [{"instance_data_dir": "pictures"}]} | part
        parse_job(job if "base" in part else job | {"base": {"model_flavour": "dev", "pretrained_model_name_or_path": "dev"}})


def test_settings_are_called_by_their_names() -> None:
    schema, nodes = TrainJob.model_json_schema(), json.loads(text_of(ROOT / "docs" / "nodes.json"))
    fields = {name: field for part in schema["$defs"].values() for name, field in part["properties"].items()}
    choices = {choice for field in fields.values() for choice in field.get("enum", ())}
    widgets = {given["name"] for node in nodes.values() for given in node["inputs"]}
    code = INLINE.findall(text_of(ROOT / "docs" / "settings.md"))
    names = {word for word in code if re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)+", word)}
    assert not names - fields.keys() - choices - widgets
    assert len(names & fields.keys()) > 70


def test_every_message_in_troubleshooting_is_one_that_the_code_says() -> None:
    templates = message_templates()
    quotes = [quote for row in rows(text_of(ROOT / "docs" / "troubleshooting.md")) for quote in codes(row[0])]
    assert len(quotes) >= 60
    assert not [quote for quote in quotes if not is_said(quote, templates)]
    assert not is_said("a sentence … that nobody says", templates)


def test_the_readme_s_tree_names_every_module_of_the_trainer_and_no_file_that_is_gone() -> None:
    tree = next(block for block in blocks(text_of(ROOT / "README.md"), "") if block.startswith("__init__.py"))
    words, trainer = set(re.findall(r"\w+", tree)), ROOT / "trainer_core"
    told = [trainer, *(trainer / name for name in ("adapter", "data", "flux", "plan", "validation"))]
    modules = [path.stem for folder in told for path in folder.glob("[a-z]*.py")]
    assert len(modules) > 150 and not [name for name in modules if name not in words]
    there = {path.name for place in PACK for path in (ROOT / place).rglob("*.*")} | {"__init__.py"}
    assert not set(re.findall(r"\w+\.(?:py|js|css|json)\b", tree.replace("node.js", ""))) - there


def test_the_figures_of_the_readme_are_those_of_the_benchmarks() -> None:
    figures = re.compile(r"\d+\.\d+")
    table = text_of(ROOT / "README.md").partition("\n| measured ")[2].partition("\n\n")[0]
    assert len(figures.findall(table)) >= 8
    assert not set(figures.findall(table)) - set(figures.findall(text_of(ROOT / "docs" / "benchmarks.md")))


def test_the_readme_leads_to_every_page_of_the_docs() -> None:
    led = set(links(text_of(ROOT / "README.md")))
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"docs/{page.name}" not in led]


@pytest.fixture
def run_folder(user_folder: Path) -> Path:
    return user_folder / "runs" / (user_folder / "RUN_DIR").read_text(encoding="utf-8")


def test_every_file_of_a_run_folder_is_on_its_page(run_folder: Path) -> None:
    table = rows(text_of(ROOT / "docs" / "run_folder.md"))
    told = [re.sub(r"\b(NAME|N|STEP|DIGEST)\b", "*", code) for row in table for code in codes(row[0])]
    inner = {code for row in table if row[0].startswith("`checkpoints/") for code in codes(row[1])}
    patterns = [pattern + "*" if pattern.endswith("/") else pattern for pattern in told] + ["*-ema.safetensors"]
    files = [path.relative_to(run_folder).as_posix() for path in run_folder.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert not [file for file in files if not any(fnmatch(file, pattern) for pattern in patterns)]
    for folder in (run_folder / "checkpoints").iterdir():
        assert {path.name + "/" * path.is_dir() for path in folder.iterdir()} <= inner


def test_a_run_folder_tells_its_versions(run_folder: Path) -> None:
    assert json.loads(text_of(run_folder / "manifest.json"))["version"] == RUN_FOLDER_VERSION
    events = [json.loads(line) for line in text_of(run_folder / "events.jsonl").splitlines()]
    assert {event["version"] for event in events if event["event"] == "started"} == {EVENTS_VERSION}
    state = json.loads(text_of(next((run_folder / "checkpoints").rglob("state.json"))))
    assert state.keys() == {"history", "digests", "optimizer", "sha256"}
