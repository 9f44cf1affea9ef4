"""Single files of `nodes/` without ComfyUI: those that import nothing of it at their top."""

import importlib
import sys
import types
from types import ModuleType

from support import ROOT


def node_file(name: str) -> ModuleType:
    """The module `nodes/NAME.py`, in a made-up package beside the core's real code."""
    for package, path in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        if package not in sys.modules:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(path)]
    return importlib.import_module(f"pack.nodes.{name}")
