"""Going out: the LoRA's header for model libraries, the hub, the webhook, and the losses as a table."""

import base64
import csv
import hashlib
import io
import json
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_servers import Hub, serving

from support import Command, job_data, make_pictures
from trainer_core.adapter.header import MOST_HEADER, metadata_of, with_metadata
from trainer_core.errors import JobError
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.flux.licences import LICENCES, strictest
from trainer_core.job_changes import allowed_changes
from trainer_core.job_file import parse_job, shown_job
from trainer_core.model_card import model_card
from trainer_core.modelspec import modelspec_of, trigger_phrase_of
from trainer_core.run_dir import run_dir_for
from trainer_core.webhook import address_of

TOKEN = "hf_veryverysecret"
PUBLISHING = {
    "title": 'Balls, "quoted"',
    "author": "me",
    "description": "Round things.",
    "tags": "ball, round",
    "push_to_hub": True,
    "hub_model_id": "me/balls",
    "model_card_note": "Mind the bounce.",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory, cache) -> tuple[Path, list[dict], str]:
    """A run that wishes for everything: its folder, what its webhook was told, its standard error. The hub is not reached."""
    folder = tmp_path_factory.mktemp("published")
    pictures = make_pictures(folder / "holiday" / "balls")
    with serving(lambda asked: (500, {})) as (address, asked):
        data = job_data(
            pictures,
            training={"max_train_steps": 4, "log_interval": 2},
            validation={"num_validation_images": 4, "validation_prompts": ["a red ball"], "validation_num_inference_steps": 1},
            publishing=PUBLISHING | {"webhook_url": f"{address}/hook?key=secret"},
            metadata={"workflow": '{"nodes": []}'},
        )
        data["datasets"][0] |= {"trigger_word": "b4ll"}
        (folder / "job.json").write_text(json.dumps(data))
        done = Command("run", folder / "job.json", "--out", folder / "runs", "--cache", cache)
        assert done.code == 0, done.stderr
        return Path(done.report["run_dir"]), [json.loads(one.body) for one in asked], done.stderr


def lora_of(run_dir: Path) -> Path:
    return run_dir / "test.safetensors"


def login(address: str) -> dict[str, str]:
    """The environment of somebody who is logged in at this hub."""
    return {"HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def events(run_dir: Path, kind: str) -> list[dict]:
    lines = (run_dir / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_the_header_says_what_model_libraries_show(told):
    run_dir, _, _ = told
    header = metadata_of(lora_of(run_dir).read_bytes())
    shown = {name.removeprefix("modelspec."): text for name, text in header.items() if name.startswith("modelspec.")}
    thumbnail, digest, date = shown.pop("thumbnail"), shown.pop("hash_sha256"), shown.pop("date")
    assert shown == {
        "sai_model_spec": "1.0.1",
        "architecture": "flux-1-pico/lora",
        "implementation": "diffusers",
        "title": 'Balls, "quoted"',
        "description": "Round things.",
        "author": "me",
        "resolution": "64x64",
        "trigger_phrase": "b4ll",
        "usage_hint": "say b4ll, 64x64, guidance 2.5, 20 steps",
        "tags": "ball, round",
        "license": "apache-2.0",
    }
    assert date == time.strftime("%Y-%m-%d", time.gmtime(events(run_dir, "phase")[0]["time"]))
    kind, _, data = thumbnail.partition(",")
    assert kind == "data:image/jpeg;base64" and Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 256)
    file = lora_of(run_dir).read_bytes()
    assert digest == "0x" + hashlib.sha256(file[8 + int.from_bytes(file[:8], "little") :]).hexdigest()


def test_the_webhook_is_told_once_and_its_failure_fails_nothing(told):
    run_dir, hooked, _ = told
    (sent,) = hooked
    done = events(run_dir, "done")[0]
    assert sent["event"] == "done" and sent["run_id"] == run_dir.name and sent["name"] == "test"
    assert (sent["step"], sent["steps"], sent["lora"], sent["seconds"]) == (4, 4, "test.safetensors", done["seconds"])
    assert sent["text"] == sent["content"] == "test: done at step 4"
    (warning,) = (event["message"] for event in events(run_dir, "warning") if "webhook" in event["message"])
    assert warning == "the webhook at 127.0.0.1 was not told: it answered 500; check webhook_url"


def test_the_hook_s_address_is_in_nothing_that_leaves_the_run_folder(told):
    run_dir, _, said = told
    assert b"key=secret" not in lora_of(run_dir).read_bytes() and "key=secret" not in said
    assert "key=secret" not in (run_dir / "events.jsonl").read_text()
    job = parse_job(json.loads((run_dir / "job.json").read_text()))
    assert "webhook_url" not in shown_job(job)["publishing"] and "key=secret" in job.publishing.webhook_url


def test_a_hub_that_is_not_reached_leaves_the_run_finished_and_names_the_mend(told):
    run_dir, _, _ = told
    assert (run_dir / "result.json").exists() and not (run_dir / "published.json").exists()
    (warning,) = (event["message"] for event in events(run_dir, "warning") if "not published" in event["message"])
    assert warning.startswith("the LoRA was not published to me/balls (")
    assert warning.endswith(f"unset it, then: flux-lora publish {run_dir} --to me/balls")


def test_what_would_be_published_can_be_looked_at(told, tmp_path):
    run_dir, _, _ = told
    done = Command("publish", run_dir, "--prepare", tmp_path / "repo")
    assert done.code == 0, done.stderr
    repo = tmp_path / "repo"
    files = sorted(path.relative_to(repo).as_posix() for path in repo.rglob("*") if path.is_file())
    assert files == ["README.md", "samples/00.png", "test.safetensors"]
    card = (repo / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\npipeline_tag: text-to-image\n")
    for line in (
        'tags: ["text-to-image", "diffusers", "lora", "flux", "template:sd-lora", "ball", "round"]',
        'instance_prompt: "b4ll"',
        '- text: "a red ball"\n  output: {url: "samples/00.png"}',
        '# Balls, "quoted"\n\nRound things.\n\n<Gallery />',
        "| steps | 4 |\n| pictures | 6 |",
        "| rank | 4 |",
        "Mind the bounce.",
    ):
        assert line in card, card
    header = metadata_of((repo / "test.safetensors").read_bytes())
    assert "workflow" not in header and "holiday" not in json.dumps(header) and str(run_dir) not in card
    assert json.loads(header["flux_lora.job"])["datasets"][0]["instance_data_dir"] == "balls"
    again = Command("publish", run_dir, "--prepare", tmp_path / "repo")
    assert again.code == 2 and "is not empty" in again.stderr
    with_graph = Command("publish", run_dir, "--prepare", tmp_path / "graph", "--with-workflow")
    assert with_graph.code == 0 and "workflow" in metadata_of((tmp_path / "graph" / "test.safetensors").read_bytes())


def test_a_run_is_published_to_a_private_repository(told, tmp_path):
    run_dir, _, _ = told
    hub = Hub()
    with serving(hub) as (address, asked):
        done = Command("publish", run_dir, "--to", "me/other", in_child=True, environment=login(address))
    assert done.code == 0, done.stderr
    assert hub.private == {"me/other": True}
    assert sorted(hub.files) == ["README.md", "samples/00.png", "test.safetensors"]
    assert hub.files["samples/00.png"] == (run_dir / "samples" / "step-000004" / "00.png").read_bytes()
    assert any(one.authorization == f"Bearer {TOKEN}" for one in asked)
    note = run_dir / "published.json"
    assert json.loads(note.read_text()) == {"repository": "me/other", "private": True, "which": "final"}
    note.unlink()
    assert not any(TOKEN.encode() in path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert TOKEN not in done.stdout + done.stderr and not any(TOKEN.encode() in data for data in hub.files.values())


@pytest.mark.parametrize("is_private", [True, False])
def test_a_run_that_wishes_it_is_published_at_its_end(pictures, cache, tmp_path, is_private):
    publishing = PUBLISHING | {"model_card_private": is_private}
    (tmp_path / "job.json").write_text(json.dumps(job_data(pictures, training={"max_train_steps": 1}, publishing=publishing)))
    hub = Hub()
    with serving(hub) as (address, _):
        words = ("run", tmp_path / "job.json", "--out", tmp_path / "runs", "--cache", cache)
        done = Command(*words, in_child=True, environment=login(address))
    assert done.code == 0, done.stderr
    assert hub.private == {"me/balls": is_private} and sorted(hub.files) == ["README.md", "test.safetensors"]
    run_dir = Path(done.report["run_dir"])
    assert json.loads((run_dir / "published.json").read_text())["private"] == is_private
    assert hub.files["README.md"].startswith(b"---\nlicense: apache-2.0\n")
    sent, kept = hub.files["test.safetensors"], lora_of(run_dir).read_bytes()
    assert metadata_of(sent)["modelspec.hash_sha256"] == metadata_of(kept)["modelspec.hash_sha256"]
    assert not [event for event in events(run_dir, "warning") if "published" in event["message"]]


def test_public_makes_a_repository_that_everybody_sees(told):
    run_dir, _, _ = told
    hub = Hub()
    with serving(hub) as (address, _):
        done = Command("publish", run_dir, "--to", "me/shown", "--public", in_child=True, environment=login(address))
    assert done.code == 0 and hub.private == {"me/shown": False}, done.stderr
    (run_dir / "published.json").unlink()


def test_a_hub_that_says_no_is_an_error_with_the_mend(told):
    run_dir, _, _ = told
    with serving(Hub(refuses=401)) as (address, _):
        done = Command("publish", run_dir, in_child=True, environment=login(address))
    assert done.code == 2 and "not published to me/balls" in done.stderr and "hf auth login" in done.stderr
    assert TOKEN not in done.stderr and "Traceback" not in done.stderr
    wrong = Command("publish", run_dir, "--to", "a/b/c")
    assert wrong.code == 2 and "write NAME or OWNER/NAME" in wrong.stderr


def test_the_losses_as_a_table(told, tmp_path):
    run_dir, _, _ = told
    done = Command("export-csv", run_dir, "--out", tmp_path / "losses.csv")
    assert done.code == 0 and done.report["rows"] == 4
    with (tmp_path / "losses.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    steps = events(run_dir, "step")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert [float(row["loss"]) for row in rows] == [event["loss"] for event in steps]
    assert list(rows[0]) == ["step", "loss", "learning_rate", "grad_norm", "seconds", "held_out_loss"]
    assert Command("export-csv", tmp_path).code == 2


def test_steps_that_were_done_again_stand_in_the_table_once(tmp_path):
    def step(number: int, loss: float) -> dict:
        return {"event": "step", "step": number, "loss": loss, "learning_rate": 1, "grad_norm": 1, "seconds": 1}

    told = [
        {"event": "started", "resumed_from": 0},
        {"event": "evaluation", "step": 0, "loss": 0.5},
        *(step(number, 1.0) for number in (1, 2, 3)),
        {"event": "started", "resumed_from": 1},
        step(2, 2.0),
    ]
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    done = Command("export-csv", tmp_path)
    assert done.report["text"].splitlines()[1:] == ["0,,,,,0.5", "1,1.0,1,1,1,", "2,2.0,1,1,1,"]


def test_a_hook_s_address_may_wait_in_the_environment_and_is_an_address(pictures, monkeypatch):
    monkeypatch.setenv("HOOK", "not an address")
    job = parse_job(job_data(pictures, publishing={"webhook_url": "$HOOK"}))
    with pytest.raises(JobError, match="environment variable HOOK holds no address"):
        address_of(job)
    monkeypatch.setenv("HOOK", "https://example.org/x")
    assert address_of(job) == "https://example.org/x"
    with pytest.raises(JobError, match="webhook_url must begin with https://"):
        parse_job(job_data(pictures, publishing={"webhook_url": "file:///etc/passwd"}))


def test_publishing_makes_no_other_run_of_a_job(pictures, tmp_path):
    plain, shown = (parse_job(job_data(pictures, publishing=fields)) for fields in ({}, {"title": "Other"}))
    assert run_dir_for(plain, tmp_path) == run_dir_for(shown, tmp_path)
    assert [change.field for change in allowed_changes(plain, shown)] == ["publishing.title"]


def test_dev_s_licence_wins_and_what_is_unknown_counts_as_dev():
    assert strictest(["flux-1-schnell/lora", "flux-1-dev/lora"]) == strictest(["flux-1-schnell", ""]) == "flux-1-dev"
    assert strictest(["flux-1-schnell", "flux-1-pico/lora"]) == "flux-1-schnell"
    assert {flavour.architecture for flavour in FLAVOURS.values()} == LICENCES.keys()


@pytest.mark.parametrize(
    ("flavour", "licence"),
    [
        ("dev", "license: other\nlicense_name: flux-1-dev-non-commercial-license\n"),
        ("schnell", "license: apache-2.0\nbase_model:"),
    ],
)
def test_the_card_has_the_licence_of_the_base(pictures, flavour, licence):
    files = {name: "x" for name in ("transformer_path", "vae_path", "clip_l_path", "t5_path")}
    files |= {"clip_tokenizer_path": "x", "t5_tokenizer_path": "x"}
    job = parse_job(job_data(pictures, base={"model_flavour": flavour, **files}))
    card = model_card(job, "x.safetensors", 1, [], 1)
    assert card.startswith(f"---\n{licence}")
    assert f"base_model: black-forest-labs/FLUX.1-{flavour}" in card and "base_model_relation: adapter" in card


@pytest.mark.parametrize(
    ("architecture", "licence", "shown"),
    [
        ("flux-1-dev/lora", "other", "flux-1-dev-non-commercial-license ("),
        ("flux-1-schnell/lora", "apache-2.0", "apache-2.0"),
        ("flux-1-unheard-of/lora", "other", "flux-1-dev-non-commercial-license ("),
    ],
)
def test_what_began_with_a_lora_of_dev_has_dev_s_licence_on_schnell_too(pictures, tmp_path, architecture, licence, shown):
    began = {"modelspec.architecture": architecture}
    save_file({"x.lora_A.weight": torch.zeros(1, 1)}, tmp_path / "began.safetensors", began)
    base = {"model_flavour": "schnell", "pretrained_model_name_or_path": "black-forest-labs/FLUX.1-schnell"}
    job = parse_job(job_data(pictures, base=base, lora={"init_lora": str(tmp_path / "began.safetensors")}))
    assert model_card(job, "x.safetensors", 1, [], 1).startswith(f"---\nlicense: {licence}\n")
    assert modelspec_of(job, FLAVOURS["schnell"], "x")["modelspec.license"].startswith(shown)


def test_the_trigger_is_what_the_job_says_else_what_the_datasets_have(pictures):
    def trigger(**changes: object) -> str:
        said = changes.pop("said", "")
        datasets = [{"instance_data_dir": str(pictures), **changes}]
        return trigger_phrase_of(parse_job(job_data(pictures, datasets=datasets, publishing={"trigger_phrase": said})))

    assert trigger() == "" and trigger(trigger_word="sks") == "sks" and trigger(trigger_word="sks", said="mine") == "mine"
    assert trigger(caption_strategy="instanceprompt", instance_prompt="a photo of sks") == "a photo of sks"
    assert "trigger_phrase" not in modelspec_of(parse_job(job_data(pictures)), FLAVOURS["pico"], "x")


def test_a_header_stays_as_small_as_model_libraries_read(told, caplog):
    data = lora_of(told[0]).read_bytes()
    large = {"workflow": "w" * 600_000, "prompt": "p" * 600_000, "modelspec.title": "t", "modelspec.thumbnail": "x"}
    kept = metadata_of(with_metadata(data, large))
    assert kept.keys() == {"workflow", "modelspec.title", "modelspec.thumbnail"} and "prompt is left out" in caplog.text
    small = with_metadata(data, large | {"workflow": "w" * MOST_HEADER})
    assert metadata_of(small).keys() == {"modelspec.title", "modelspec.thumbnail"}
    assert int.from_bytes(small[:8], "little") <= MOST_HEADER
