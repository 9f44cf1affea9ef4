"""What is made from the nodes is what a real ComfyUI says of them, and it serves the translations."""

import pytest
from comfy_server import Server

from tools.refresh.made import make_all
from tools.refresh.texts import TRANSLATED, read_json, texts_path


def test_what_is_made_from_the_nodes_is_current(server: Server) -> None:
    for path, text in make_all(server.get("/object_info")).items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name}: run python -m tools.refresh"


@pytest.mark.parametrize("language", ["en", *TRANSLATED])
def test_comfyui_serves_the_texts_of_the_nodes(server: Server, language: str) -> None:
    served = server.get("/i18n")[language]["nodeDefs"]
    for node, texts in read_json(texts_path(language)).items():
        assert served[node] == texts
