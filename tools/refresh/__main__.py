"""python -m tools.refresh [--breaking]: start a ComfyUI, ask the nodes, and write what is made from them.

An input that has moved, gone or changed its type breaks the workflows that people saved; that is refused without --breaking.
"""

import argparse
import tempfile
from pathlib import Path

from tests.comfy.comfy_server import HOW_TO_GET_ONE, find_comfyui, find_python, start_server

from .made import SCHEMA_PATH, make_all, our_nodes
from .schema import broken_promises, describe
from .texts import read_json, untranslated


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.refresh", description=__doc__)
    parser.add_argument("--breaking", action="store_true", help="let inputs move, go and change their type")
    arguments = parser.parse_args()
    comfyui = find_comfyui()
    if comfyui is None:
        parser.error(HOW_TO_GET_ONE)
    with tempfile.TemporaryDirectory() as folder:
        server = start_server(comfyui, find_python(comfyui), Path(folder) / "comfyui")
        try:
            info = server.get("/object_info")
        finally:
            server.stop()
    broken = broken_promises(read_json(SCHEMA_PATH), describe(our_nodes(info)))
    if broken and not arguments.breaking:
        parser.error("this breaks saved workflows (--breaking does it all the same):\n" + "\n".join(broken))
    for path, text in make_all(info).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"written: {path}")
    for line in untranslated():
        print(f"still English: {line}")


if __name__ == "__main__":
    main()
