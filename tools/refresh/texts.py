"""The texts of the nodes in the browser's languages: `locales/<language>/nodeDefs.json`, as ComfyUI's /i18n serves them.

English is what the nodes say. The other languages are written by hand in their files; what is missing there is put in with
the English text, and what the nodes no longer have is taken out, so that all files have the same keys.

A translated tooltip ends with the input's own name in brackets: messages, help pages and job files use that name.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LOCALES = ROOT / "locales"
TRANSLATED = ("zh", "ru", "ja")
SPECIAL = frozenset("{}@|")  # the browser's vue-i18n would take these for placeholders, links and plurals

Texts = dict[str, Any]


def texts_path(language: str) -> Path:
    return LOCALES / language / "nodeDefs.json"


def english(nodes: dict[str, Any]) -> Texts:
    """The texts of all nodes, from what /object_info says of them. AssertionError for a sign that the browser would misread."""
    texts = {}
    for node_id, node in nodes.items():
        groups = [node["input"].get(group, {}) for group in ("required", "optional")]
        inputs = {
            name: {"name": name, "tooltip": (rest[0] if rest else {}).get("tooltip", "")}
            for group in groups
            for name, (_, *rest) in group.items()
        }
        outputs = {str(index): {"name": name} for index, name in enumerate(node["output_name"])}
        told = {"display_name": node["display_name"], "description": node["description"]}
        texts[node_id] = {**told, "inputs": inputs, "outputs": outputs}
    for path, text in leaves(texts):
        assert not SPECIAL & set(text), f"{'.'.join(path)}: {text!r} holds one of {''.join(sorted(SPECIAL))}"
    return texts


def translated(source: Texts, own: Texts) -> Texts:
    """The tree of the English texts with the translations there are."""
    name = source.get("name", "")
    return {
        key: translated(value, own.get(key, {})) if isinstance(value, dict) else own.get(key, _stand_in(key, value, name))
        for key, value in source.items()
    }


def _stand_in(key: str, text: str, name: str) -> str:
    """The English text in the form of a translation."""
    return f"{text} ({name})" if key == "tooltip" and text else text


def untranslated() -> list[str]:
    """Tooltips and descriptions that are still English in a translation, as `language path`."""
    source = dict(leaves(read_json(texts_path("en"))))
    found = []
    for language in TRANSLATED:
        own = dict(leaves(read_json(texts_path(language))))
        same = [path for path, text in source.items() if path[-1] in ("tooltip", "description") and text and text in own[path]]
        found += [f"{language} {'.'.join(path)}" for path in same]
    return found


def leaves(texts: Texts, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every text with the path of its keys."""
    for key, value in texts.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def as_json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"
