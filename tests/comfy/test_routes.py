"""The routes of the monitor on a real server: what they tell of a run, and that they give and change nothing else."""

import hashlib
import io
import json
import os
import random
import socket
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from comfy_client import Message, Outcome, queue
from comfy_server import PACK_NAME, PACK_ROOT, Server
from graphs import STEPS, Prompt, change, find, only
from PIL import Image
from raw_http import Answer, form, request
from test_example import run_dir_of

RUNS = "/api/flux_lora/runs"
FOREIGN = "http://evil.example"
ELSEWHERE = "192.0.2.1:8188"  # a host by which ComfyUI's own check of origins lets everything pass


def ask(server: Server, method: str, path: str | bytes, body: object = b"", **headers: str) -> Answer:
    return request(server.url, method, path, body, **headers)


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def made(server: Server, tmp_path: Path) -> Iterator[Path]:
    """A run folder made by hand, with links in it and a secret beside the runs."""
    run = server.runs_dir / "made-1"
    (run / "samples" / "step-000001").mkdir(parents=True)
    (run / "checkpoints" / "step-00000001" / "lora").mkdir(parents=True)
    (run / "job.json").write_text(json.dumps({"name": "made", "metadata": {"workflow": '{"nodes": []}', "prompt": "{"}}))
    event = {"time": 1, "event": "sample", "step": 1, "path": str(run / "samples" / "step-000001" / "00.png")}
    (run / "events.jsonl").write_text(json.dumps(event) + '\n{"time": 2, "ev')
    (run / "samples" / "step-000001" / "00.png").write_bytes(png())
    (run / "samples" / "step-000001" / "page.png").write_bytes(b"<script>alert(1)</script>")
    (run / "optimizer.safetensors").write_bytes(b"state")
    (run / "checkpoints" / "step-00000001" / "optimizer.safetensors").write_bytes(b"state")
    (run / "checkpoints" / "step-00000001" / "lora" / "made.safetensors").write_bytes(b"lora")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "secret.png").write_bytes(png())
    (server.runs_dir.parent / "beside.png").write_bytes(png())
    (run / "link.png").symlink_to(secret / "secret.png")
    (run / "linked").symlink_to(secret, target_is_directory=True)
    (server.runs_dir / "linked-run").symlink_to(secret, target_is_directory=True)
    (secret / "job.json").write_text("{}")
    yield run
    (server.runs_dir / "linked-run").unlink()
    (server.runs_dir.parent / "beside.png").unlink()
    assert sorted(path.name for path in secret.iterdir()) == ["job.json", "secret.png"]
    if run.exists():
        ask(server, "DELETE", f"{RUNS}/made-1", {})
    assert not run.exists()


def test_a_finished_run_is_told_in_full(server: Server, trained: Outcome) -> None:
    run = run_dir_of(server, "pico-demo")
    summary = server.get(f"{RUNS}/{run.name}")
    assert summary in server.get(RUNS)["runs"]
    assert (summary["state"], summary["step"], summary["steps"], summary["base"]) == ("finished", STEPS, STEPS, "pico")
    assert summary["loss"] > 0 and summary["has_workflow"] and summary["message"] is None
    told = server.get(f"{RUNS}/{run.name}/events?after=0")
    assert told["next"] == (run / "events.jsonl").stat().st_size and told["state"] == "finished"
    assert [event["step"] for event in told["events"] if event["event"] == "step"] == list(range(1, STEPS + 1))
    assert server.get(f"{RUNS}/{run.name}/events?after={told['next']}")["events"] == []
    assert server.get(f"{RUNS}/{run.name}/events?after={told['next'] + 1}")["restarted"]
    pictures = [event["path"] for event in told["events"] if event["event"] == "sample"]
    for path in (*pictures, summary["thumbnail"]):
        answer = ask(server, "GET", f"{RUNS}/{run.name}/files/{path}")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
        assert answer.body == (run / path).read_bytes()
    assert ask(server, "GET", f"{RUNS}/{run.name}/files/{summary['lora']}").body == (run / summary["lora"]).read_bytes()
    graph = server.get(f"{RUNS}/{run.name}/workflow")
    assert graph["workflow"]["nodes"] and "TrainLoRA" in {node["class_type"] for node in graph["prompt"].values()}


def test_the_page_hears_which_node_trains_which_run(forgetful: Server, example: Prompt, trained: Outcome) -> None:
    node, run = find(example, "TrainLoRA"), run_dir_of(forgetful, "pico-demo").name
    assert trained.of("flux_lora.run") == [
        {"node_id": node, "run_id": run, "state": "running"},
        {"node_id": node, "run_id": run, "state": "finished"},
    ]
    copied = forgetful.output_dir / "loras" / f"{run}.safetensors"
    copied.write_bytes(b"another")
    again = queue(forgetful.url, only(example, "TrainLoRA"))
    assert copied.read_bytes() == (run_dir_of(forgetful, "pico-demo") / "pico-demo.safetensors").read_bytes()
    assert again.of("flux_lora.run") == [{"node_id": node, "run_id": run, "state": "finished"}]


def test_a_running_run_obeys_and_cannot_be_deleted_until_it_has_stopped(server: Server, example: Prompt) -> None:
    prompt = change(only(example, "TrainLoRA"), "TrainLoRA", name="asked", max_train_steps=5000)
    prompt = change(prompt, "ValidationConfig", validation_prompts="", num_validation_images=0)
    seen: dict[str, Answer] = {}

    def watch(message: Message) -> bool:
        """In the first step everything is tried; the last wish ends the run."""
        data = message["data"]
        if message["type"] == "flux_lora.run" and not seen:
            seen["begun"] = ask(server, "GET", f"{RUNS}/{data['run_id']}")
            seen["delete while it begins"] = ask(server, "DELETE", f"{RUNS}/{data['run_id']}", {})
        if message["type"] == "progress" and data["max"] == 5000 and "stop" not in seen:
            folder = next(server.runs_dir.glob("asked-*"))
            strange = {"time": 1, "event": "sample", "step": 1, "path": "/etc/hostname"}  # opening it would end the node
            with (folder / "events.jsonl").open("a", encoding="utf-8") as told:
                told.write(json.dumps(strange) + "\n")
            run = f"{RUNS}/{folder.name}"
            seen["running"] = ask(server, "GET", run)
            seen["delete"] = ask(server, "DELETE", run, {})
            seen["prompt"] = ask(server, "POST", f"{run}/ask", {"command": "stop", "prompt": "a cat"})
            seen["save"] = ask(server, "POST", f"{run}/ask", {"command": "save"})
            seen["stop"] = ask(server, "POST", f"{run}/ask", {"command": "stop"})
        return False

    outcome = queue(server.url, prompt, interrupt_when=watch)
    run = next(server.runs_dir.glob("asked-*"))
    assert seen["begun"].json["state"] == seen["running"].json["state"] == "running"
    assert seen["delete"].status == seen["delete while it begins"].status == 409
    assert "stop it first" in seen["delete"].json["error"]
    assert seen["prompt"].status == 400 and "takes no prompt" in seen["prompt"].json["error"]
    assert (seen["save"].json, seen["stop"].json) == ({"asked": "save"}, {"asked": "stop"})
    assert outcome.status == "interrupted", "a stop from the page ends the graph as Cancel does"
    assert [told["state"] for told in outcome.of("flux_lora.run")] == ["running", "stopped"]
    summary = server.get(f"{RUNS}/{run.name}")
    assert summary["state"] == "stopped" and 0 < summary["step"] < 5000
    assert ask(server, "POST", f"{RUNS}/{run.name}/ask", {"command": "stop"}).status == 409
    assert ask(server, "DELETE", f"{RUNS}/{run.name}", {}).json == {"deleted": run.name}
    assert not run.exists() and ask(server, "GET", f"{RUNS}/{run.name}").status == 404


def test_a_lora_is_offered_under_a_name_that_stays_in_the_folder(server: Server, trained: Outcome, made: Path) -> None:
    run, loras = run_dir_of(server, "pico-demo"), server.output_dir / "loras"
    offer = f"{RUNS}/{run.name}/offer"
    given = ask(server, "POST", offer, {"name": "mine/first", "checkpoint": STEPS})
    assert given.status == 200, given.body
    listed = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"][0]
    assert given.json["lora"] in listed and (loras / given.json["lora"]).is_file()
    (loras / "other.safetensors").write_bytes(b"another")
    (loras / "out").symlink_to(server.base_dir / "input", target_is_directory=True)
    for name, said in {
        "../../input/mine": "leaves the LoRA folder",
        "/mine": "cannot be that of a LoRA",
        "out/mine": "leaves the LoRA folder",
        "C:\\mine": "cannot be that of a LoRA",
        "nul": "is the name of a device",
        "a\nb": "characters that no file name may have",
        "x" * 300: "is too long",
        "a/b/c/d/e": "leaves the LoRA folder",
        "": "is empty",
        "other": "is there already and another LoRA",
        "made-1": "is the name of a run",
    }.items():
        refused = ask(server, "POST", offer, {"name": name, "checkpoint": "final"})
        assert refused.status == 400 and said in refused.json["error"], (name, refused.body)
    assert "has no LoRA 'best'" in ask(server, "POST", offer, {"name": "mine", "checkpoint": "best"}).json["error"]
    assert (loras / "other.safetensors").read_bytes() == b"another" and not any((server.base_dir / "input").glob("*.saf*"))


def test_a_run_whose_result_names_a_foreign_file_offers_nothing(server: Server, trained: Outcome, made: Path) -> None:
    job = (run_dir_of(server, "pico-demo") / "job.json").read_text(encoding="utf-8")
    (made / "job.json").write_text(job, encoding="utf-8")
    (made.parent.parent / "secret.safetensors").write_bytes(b"secret")
    for result in ({"lora": "../../secret.safetensors", "steps": 1, "samples": []}, [], {"lora": 1}, "text"):
        (made / "result.json").write_text(json.dumps(result))
        refused = ask(server, "POST", f"{RUNS}/made-1/offer", {"name": "stolen"})
        assert refused.status == 400 and "error" in refused.json
        assert ask(server, "GET", RUNS).status == 200
    assert not list((server.output_dir / "loras").glob("stolen*"))


def test_files_are_pictures_and_loras_inside_the_run_folder(server: Server, made: Path) -> None:
    files = f"{RUNS}/made-1/files"
    for path in ("samples/step-000001/00.png", "checkpoints/step-00000001/lora/made.safetensors"):
        assert ask(server, "GET", f"{files}/{path}").body == (made / path).read_bytes()
    for path in (
        "job.json",
        "events.jsonl",
        "samples",
        "samples/step-000001/page.png",
        "samples/step-000001/none.png",
        "checkpoints/step-00000001/optimizer.safetensors",
        "link.png",
        "linked/secret.png",
        "../../beside.png",
        "%2e%2e/%2e%2e/beside.png",
        "..%2f..%2fbeside.png",
        "samples/..%5c..%5cbeside.png",
        "%2fetc%2fpasswd",
        "samples//step-000001/00.png",
        "samples/./step-000001/00.png",
        "samples/step-000001/00.png%00",
        "samples/step-000001/00.png%20",
        "samples/step-000001/00.png::$DATA",
        "x" * 5000 + ".png",
    ):
        refused = ask(server, "GET", f"{files}/{path}")
        assert refused.status == 404 and refused.headers["cache-control"] == "no-store", (path, refused)
    assert ask(server, "GET", f"{files}/samples/step-000001/00.png").headers["x-content-type-options"] == "nosniff"


def test_an_id_that_is_no_run_is_nowhere(server: Server, made: Path) -> None:
    for name in (
        "none",
        "..",
        ".",
        "%2e%2e",
        "..%2fruns%2fmade-1",
        "made-1%2f..%2fmade-1",
        "made-1%00",
        "linked-run",
        "made-1%2f",
    ):
        for method, rest in (("GET", ""), ("GET", "/events"), ("GET", "/workflow"), ("POST", "/ask"), ("DELETE", "")):
            answer = ask(server, method, f"{RUNS}/{name}{rest}", {"command": "stop"})
            assert answer.status in (404, 405), (method, name, rest, answer)
    assert made.exists() and (server.runs_dir / "linked-run" / "job.json").exists()


def test_a_damaged_run_is_told_and_deleted_with_its_links_but_not_what_they_lead_to(server: Server, made: Path) -> None:
    summary = server.get(f"{RUNS}/made-1")
    assert summary["state"] == "failed" and "job.json is damaged" in summary["message"]
    assert summary["thumbnail"] == "samples/step-000001/00.png"
    told = server.get(f"{RUNS}/made-1/events")
    assert [event["path"] for event in told["events"]] == ["samples/step-000001/00.png"]
    assert server.get(f"{RUNS}/made-1/workflow") == {"workflow": {"nodes": []}, "prompt": None}
    assert ask(server, "DELETE", f"{RUNS}/made-1", {}).status == 200
    assert not made.exists()  # the fixture looks at what the links led to


def test_other_pages_change_nothing_even_where_comfyui_lets_them(server: Server, made: Path) -> None:
    run = f"{RUNS}/made-1"
    assert ask(server, "POST", "/free", {}, Origin=FOREIGN).status == 403  # ComfyUI's own check, of localhost alone
    assert ask(server, "POST", "/free", {}, Origin=FOREIGN, Host=ELSEWHERE).status == 200
    for headers, status in (
        ({"Origin": FOREIGN}, 403),
        ({"Origin": FOREIGN, "Host": ELSEWHERE}, 403),
        ({"Origin": "null", "Host": ELSEWHERE}, 403),
        ({"Origin": f"ftp://{ELSEWHERE}", "Host": ELSEWHERE}, 403),
        ({"Sec_Fetch_Site": "cross-site"}, 403),
        ({"Sec_Fetch_Site": "same-site", "Host": ELSEWHERE}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Origin": f"http://{ELSEWHERE}", "Host": ELSEWHERE}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "application/json", "Content_Encoding": "gzip"}, 415),
        ({"Origin": f"http://{ELSEWHERE}", "Host": ELSEWHERE}, 409),  # from here on ours: nothing trains
        ({"Sec_Fetch_Site": "same-origin", "Origin": "https://proxy.example", "Host": ELSEWHERE}, 409),
        ({}, 409),
    ):
        answer = ask(server, "POST", f"{run}/ask", {"command": "stop"}, **headers)
        assert answer.status == status, (headers, answer)
        if status != 409:
            assert ask(server, "DELETE", run, {}, **headers).status == status, headers
            assert ask(server, "POST", "/flux_lora/datasets", {}, **headers).status in (403, 415)
    assert ask(server, "DELETE", run).status == 415 and made.exists()


def test_a_body_that_is_not_understood_is_refused(server: Server, made: Path) -> None:
    for body in (
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 60_000,
        b'{"command": "stop", "more": 1}',
        b'{"command": ["stop"]}',
    ):
        answer = ask(server, "POST", f"{RUNS}/made-1/ask", body, Content_Type="application/json")
        assert answer.status == 400 and "error" in answer.json, body
    assert ask(server, "POST", f"{RUNS}/made-1/ask", b" " * 100_000, Content_Type="application/json").status == 413
    for after in ("-1", "x", "1e3", "", "9" * 30, "%00"):
        assert ask(server, "GET", f"{RUNS}/made-1/events?after={after}").status == 400, after


def test_a_dataset_is_brought_in(server: Server) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("mine/c.png", png())
        file.writestr("../../out.png", png())
    body, kind = form({"a.png": png(), "a.txt": b"a ball", "no.exe": b"MZ", "b/b.png": png(), "all.zip": archive.getvalue()})
    name = "..%2f..%2fmy%20balls%00"
    first, second = (ask(server, "POST", f"/api/flux_lora/datasets?name={name}", body, Content_Type=kind) for _ in range(2))
    assert first.status == 200, first.body
    assert first.json["pictures"] == 3 and second.json["folder"] == first.json["folder"] + " 2"
    assert {entry["file"] for entry in first.json["left_out"]} == {"no.exe", "../../out.png"}
    folder = server.base_dir / "input" / first.json["folder"]
    assert folder.parent == server.base_dir / "input" and folder.name.endswith("my balls_")
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*")) == [
        "a.png",
        "a.txt",
        "b/b.png",
        "mine/c.png",
    ]
    offered = server.get("/object_info/DatasetBucket")["DatasetBucket"]["input"]["optional"]["folder"][1]["options"]
    assert first.json["folder"] in offered


def everything_below(folder: Path) -> set[str]:
    """Also while folders vanish under the look."""
    return {os.path.join(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files)}


def test_an_upload_that_is_none_leaves_nothing(server: Server) -> None:
    before = everything_below(server.base_dir / "input")
    body, kind = form({"a.png": png(), "b.png": b"<html>"})
    nested = body.replace(b"\r\n\r\n", b"\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n", 1)
    for sent, content_type in (
        (body[:60], kind),
        (body.replace(b'; filename="a.png"', b""), kind),
        (nested, kind),
        (b"\r\n" * 10, kind),
        (body, "multipart/form-data"),
        (body, "multipart/form-data; boundary=other"),
        (body, "multipart/form-data; boundary=" + "x" * 200),
        (form({"b.png": b"<html>", "c.txt": b"c"})[0], kind),
        (form({"b.zip": b"<html>"})[0], kind),
        (form({})[0], kind),
    ):
        answer = ask(server, "POST", "/flux_lora/datasets?name=none", sent, Content_Type=content_type)
        assert answer.status == 400 and "error" in answer.json, (sent[:200], content_type, answer)
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port)) as sender:  # who goes away in the middle
        head = (
            f"POST /flux_lora/datasets HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: {kind}\r\nContent-Length: 999999\r\n"
        )
        sender.sendall(head.encode() + b"\r\n" + body[: len(png())])
        wait_until(lambda: everything_below(server.base_dir / "input") != before)
    wait_until(lambda: everything_below(server.base_dir / "input") == before)
    assert everything_below(server.base_dir / "input") == before


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not is_so() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_so()


def digest(*folders: Path) -> str:
    """Of all files and folders below these, and what they hold."""
    seen = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            seen.update(f"{path}\n".encode())
            seen.update(path.read_bytes() if path.is_file() else b"")
    return seen.hexdigest()


Odd = tuple[str, bytes, bytes, dict[str, str]]  # method, path, body, headers


def spoilt_requests(run: str, count: int) -> Iterator[Odd]:
    """Requests that each route understands up to one thing, from a fixed seed."""
    draw = random.Random(20261126)
    ids = ["none", "..", "made-1%00", "made-1%20", "made-1/..", "linked-run", "%6dade-2", "*", "a" * 300, "\xff"]
    afters = ["", "-1", "1e3", "0x1", "9" * 16, "%d9%a3", "1%20", "1;2", "null", "1.0"]
    files = (
        "job.json link.png linked/secret.png samples samples/.. ..%2fbeside.png %2e%2e/%2e%2e/beside.png C:%5ca.png nul.png "
    )
    files += "checkpoints/step-00000001/optimizer.safetensors samples/step-000001/page.png " + "a" * 600
    values = [None, True, -1, 1.5, [], {}, "x" * 5000, "\0", "", "../x", "a/b/c/d/e/f", "nul", "é", "best", "00", "stop", run]
    fields = {"ask": ("command", "prompt"), "offer": ("name", "checkpoint", "path")}
    bodies = {"standby": ["[]", "", "1", '{"command": "stop"}', "{", "\0"], "datasets": ["", "--x", "--x\r\n\r\n"]}
    forms = ["application/json", "multipart/form-data", "multipart/form-data; boundary=x"]
    foreign = [{"Origin": FOREIGN}, {"Origin": "null"}, {"Sec_Fetch_Site": "cross-site"}, {"Content_Type": "text/plain"}]
    for _ in range(count):
        kind = draw.choice(["ask", "offer", "standby", "datasets", "delete", "foreign", "run", "events", "files"])
        one, headers, body = (
            draw.choice(ids),
            {"Content_Type": "application/json"},
            draw.choice(bodies.get(kind, ["{}"])).encode(),
        )
        method, path = {
            "ask": ("POST", f"runs/{run}/ask"),
            "offer": ("POST", f"runs/{run}/offer"),
            "standby": ("POST", "standby"),
            "datasets": ("POST", f"datasets?name={one}"),
            "delete": ("DELETE", f"runs/{one}"),
            "foreign": draw.choice([("DELETE", f"runs/{run}"), ("POST", f"runs/{run}/ask"), ("POST", "standby")]),
            "run": ("GET", f"runs/{one}{draw.choice(['', '/events', '/workflow', '/files/a.png'])}"),
            "events": ("GET", f"runs/{run}/events?after={draw.choice(afters)}"),
            "files": ("GET", f"runs/{run}/files/{draw.choice(files.split())}"),
        }[kind]
        if kind in fields:
            body = json.dumps({field: draw.choice(values) for field in fields[kind] if draw.random() < 0.7}).encode()
            body = draw.choice([body, body, body, body[:-1], body + b"}", b"[" * 9000, b"\xff" + body])
        headers |= draw.choice(foreign) if kind == "foreign" else {}
        headers |= {"Content_Type": draw.choice(forms)} if kind == "datasets" else {}
        yield method, f"/api/flux_lora/{path}".encode("latin-1"), body, headers


def odd_requests(run: str, count: int) -> Iterator[Odd]:
    """Methods, paths, bodies and headers of which none means anything, from a fixed seed."""
    draw = random.Random(20261125)
    names = ["..", "%2e%2e%2f", "%00", "%ff%fe", "none", "a" * 3000, "%2fetc%2fpasswd", "~", "con", "{id}", "%25", "'\"<>", "*"]
    bodies = [
        b"",
        b"{}",
        b"[]",
        b'{"command": "explode"}',
        b'{"command": "stop", "prompt": 5}',
        b'{"name": "../x"}',
        b"\x00" * 99,
    ]
    kinds = [
        "application/json",
        "text/plain",
        "multipart/form-data; boundary=x",
        "multipart/form-data",
        "",
        "a/b; charset=\xff",
    ]
    methods = ["GET", "POST", "DELETE", "PUT", "PATCH", "HEAD", "TRACE", "CONNECT", "EXPLODE"]
    for _ in range(count):
        name = draw.choice([*names, run, bytes(draw.choices(range(33, 127), k=draw.randrange(1, 30))).decode()])
        method = draw.choice(methods)
        rest = draw.choice(
            ["files", "files/", "files/..", "ask", "offer", "explode", "events?after=x", "files/job.json", "workflow/x"]
        )
        junk = "".join(draw.choices("/.%?&=#;:@ab\\", k=draw.randrange(8))) if draw.random() < 0.5 else ""
        path = f"{draw.choice(['', '/api'])}/flux_lora/runs/{name}/{rest}{junk}"
        if draw.random() < 0.1:
            path, method = f"/flux_lora/datasets?name={name}{junk}", draw.choice(methods[:5])
        body = draw.choice([*bodies, draw.randbytes(draw.randrange(200))])
        headers = {"Content_Type": draw.choice(kinds), "Origin": draw.choice(["", FOREIGN, "null"])}
        if draw.random() < 0.3:
            headers["Sec_Fetch_Site"] = draw.choice(["cross-site", "same-origin", "\xff"])
        yield method, path.encode("latin-1"), body, {key: value for key, value in headers.items() if value}


def test_a_thousand_odd_requests_are_refused_and_change_and_tell_nothing(server: Server, made: Path) -> None:
    kept = (server.output_dir, server.base_dir / "input")
    before, log = digest(*kept), len(server.log())
    statuses: dict[int, int] = {}
    for method, path, body, headers in (*odd_requests("made-1", 500), *spoilt_requests("made-1", 500)):
        answer = request(server.url, method, path, body, **headers)
        assert 400 <= answer.status < 500, (method, path, body, headers, answer)
        for secret in (str(server.base_dir), "Traceback", str(Path.home()), ".py"):
            assert secret.encode() not in answer.body, (method, path, answer)
        statuses[answer.status] = statuses.get(answer.status, 0) + 1
    assert digest(*kept) == before
    assert PACK_NAME not in server.log()[log:] and str(PACK_ROOT) not in server.log()[log:]  # no traceback through our files
    assert statuses.keys() >= {400, 403, 404, 405, 415}, statuses
