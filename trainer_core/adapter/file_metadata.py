"""The header of an adapter file that a tool has made of others: what still holds is kept, what does not is renewed or left out.

A file's origin stays visible: `flux_lora.tools` lists, oldest first, each tool with its settings and the files it was given, by
name and fingerprint. Digests over the old tensors and other programs' notes of rank and alpha would be wrong and go. Nothing
here depends on the day or the machine, so that the same command makes the same bytes.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..flux.files import fingerprint
from ..flux.licences import LICENCES, PICO, strictest
from ..flux.load import FluxShape
from .dialects import AdapterSource
from .namings import DIFFUSERS

TOOLS = "flux_lora.tools"
ORIGINAL_CODE = "https://github.com/black-forest-labs/flux"
OUTDATED = (  # digests over the tensors as they were, and what other programs write of rank and alpha
    "modelspec.hash_sha256",
    "sshs_model_hash",
    "sshs_legacy_hash",
    "lora_adapter_metadata",
    "ss_network_dim",
    "ss_network_alpha",
)


def carried_over(source: AdapterSource, naming: str, note: Mapping[str, Any], said: str = "") -> dict[str, str]:
    """For one file made of one: its own entries, with what the tool did. `said` is added to the description."""
    kept = {name: value for name, value in source.metadata.items() if name not in OUTDATED}
    kept["modelspec.implementation"] = _implementation(naming)
    if said:
        kept["modelspec.description"] = "; ".join(filter(None, (kept.get("modelspec.description", ""), said)))
    if "modelspec.sai_model_spec" not in kept:
        kept = _new(source.path.stem, source.shape, [_architecture(source)], naming, said) | kept
    return kept | {TOOLS: _history([source.metadata], note, [source.path])}


def merged_metadata(path: Path, sources: Sequence[AdapterSource], note: Mapping[str, Any], said: str) -> dict[str, str]:
    """For one file made of several: a new title, where it came from, and the strictest of their licences."""
    titles = [source.metadata.get("modelspec.title", source.path.stem) for source in sources]
    triggers = dict.fromkeys(filter(None, (source.metadata.get("modelspec.trigger_phrase", "") for source in sources)))
    metadata = _new(path.stem, sources[0].shape, [_architecture(source) for source in sources], DIFFUSERS, said)
    metadata |= {"modelspec.merged_from": ", ".join(title.replace(",", ";") for title in titles)}
    metadata |= {"modelspec.trigger_phrase": ", ".join(triggers)} if triggers else {}
    return metadata | {TOOLS: _history([source.metadata for source in sources], note, [source.path for source in sources])}


def extracted_metadata(
    path: Path, shape: FluxShape, models: Sequence[Path], note: Mapping[str, Any], said: str
) -> dict[str, str]:
    """For one file made of two models. Which FLUX they are no file tells, so dev's licence counts, but for pico's shape."""
    architecture = "" if shape.width > 1024 else PICO
    return _new(path.stem, shape, [architecture], DIFFUSERS, said) | {TOOLS: _history([], note, models)}


def _new(title: str, shape: FluxShape, architectures: Sequence[str], naming: str, said: str) -> dict[str, str]:
    binding = strictest(architectures)
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{binding}/lora",
        "modelspec.implementation": _implementation(naming),
        "modelspec.title": title,
        "modelspec.resolution": "64x64" if binding == PICO else "1024x1024",
        "modelspec.description": said,
        "modelspec.license": LICENCES[binding].shown,
    }


def _architecture(source: AdapterSource) -> str:
    """As its header says; a file of pico's size that says nothing is pico's."""
    said = source.metadata.get("modelspec.architecture", "")
    return said or (PICO if source.shape.width <= 1024 else "")


def _implementation(naming: str) -> str:
    return "diffusers" if naming == DIFFUSERS else ORIGINAL_CODE


def _history(metadata: Sequence[Mapping[str, str]], note: Mapping[str, Any], files: Sequence[Path]) -> str:
    """What the sources say of themselves, then this tool."""
    earlier = [entry for one in metadata for entry in json.loads(one.get(TOOLS, "[]"))]
    of = [{"file": path.name, "fingerprint": fingerprint(path)} for path in files]
    return json.dumps([*earlier, {**note, "of": of}], ensure_ascii=False)
