"""The archive for ComfyUI's registry is the whole pack: a real ComfyUI loads it, and serves all of it."""

import json
import urllib.parse
import zipfile
from pathlib import Path

import pytest
from comfy_server import HOW_TO_GET_ONE, PACK_NAME, PACK_ROOT, find_comfyui, find_python, start_server

from tools.archive import archived_files, write_archive


@pytest.mark.slow  # a server of its own, for what changes seldom
def test_comfyui_loads_the_pack_from_its_archive(tmp_path: Path) -> None:
    comfyui = find_comfyui()
    if comfyui is None:
        pytest.skip(HOW_TO_GET_ONE)
    write_archive(tmp_path / "pack.zip")
    with zipfile.ZipFile(tmp_path / "pack.zip") as packed:
        packed.extractall(tmp_path / "pack")
    server = start_server(comfyui, find_python(comfyui), tmp_path / "comfyui", pack=tmp_path / "pack")
    try:
        promised = json.loads((PACK_ROOT / "docs" / "nodes.json").read_text(encoding="utf-8"))
        assert promised.keys() <= server.get("/object_info").keys() and "IMPORT FAILED" not in server.log()
        scripts = [name.removeprefix("web/") for name in archived_files() if name.startswith("web/") and name.endswith(".js")]
        assert {f"/extensions/{PACK_NAME}/{name}" for name in scripts} <= set(server.get("/extensions"))
        templates = {path.stem for path in (PACK_ROOT / "example_workflows").glob("*.json")}
        assert set(server.get("/workflow_templates")[PACK_NAME]) == templates
        assert server.get("/i18n").keys() >= {"en", "zh", "ru", "ja"}
        for name in templates:
            server.get(f"/api/workflow_templates/{PACK_NAME}/{urllib.parse.quote(name)}.json")
    finally:
        server.stop()
