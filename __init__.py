"""FLUX LoRA Studio, as ComfyUI sees it: the nodes and the web folder.

Outside ComfyUI this file must import cleanly and hand over nothing: pytest imports it, whatever it is asked to test.
"""

from importlib.util import find_spec

if find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    WEB_DIRECTORY = "./web"

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
