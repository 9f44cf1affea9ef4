"""All files that are made from the nodes, with what they should hold now."""

from pathlib import Path
from typing import Any

from tools.workflows.examples import EXAMPLES
from tools.workflows.graph import to_workflow

from .help_tables import page_path, with_table
from .schema import describe
from .texts import ROOT, TRANSLATED, as_json, english, read_json, texts_path, translated

SCHEMA_PATH = ROOT / "docs" / "nodes.json"
CATEGORY = "FLUX LoRA"
Info = dict[str, Any]


def our_nodes(info: Info) -> Info:
    """The nodes of this pack among those of /object_info."""
    return {name: node for name, node in info.items() if node["category"].split("/")[0] == CATEGORY}


def make_all(info: Info) -> dict[Path, str]:
    """File -> text, from the whole of /object_info."""
    nodes = our_nodes(info)
    schema, texts = describe(nodes), english(nodes)
    return {
        SCHEMA_PATH: as_json(schema),
        texts_path("en"): as_json(texts),
        **{texts_path(language): as_json(translated(texts, read_json(texts_path(language)))) for language in TRANSLATED},
        **make_pages(schema, texts),
        **{workflow_path(one.name): as_json(to_workflow(one, info)) for one in EXAMPLES},
    }


def workflow_path(name: str) -> Path:
    return ROOT / "example_workflows" / f"{name}.json"


def make_pages(schema: Info, texts: Info) -> dict[Path, str]:
    """The help pages with their tables current."""
    return {
        page_path(node): with_table(_page(node, texts[node]), described["inputs"], texts[node])
        for node, described in schema.items()
    }


def _page(node: str, texts: Info) -> str:
    """The page as it is, or the beginning of one."""
    path = page_path(node)
    return path.read_text(encoding="utf-8") if path.exists() else f"# {texts['display_name']}\n\n{texts['description']}\n"
