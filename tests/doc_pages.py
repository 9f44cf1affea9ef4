"""The pages of the documentation, and what is in them that can be held to the truth: commands, snippets, links, messages.

A command is a line of a fenced block, or inline code with arguments; variables of the environment may stand before it. In a
block a description may stand behind it, after two blanks. Inline code of one command's name alone, such as `flux-lora dataset`,
only mentions it.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from support import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "LOG.md"),
    *sorted((ROOT / "web" / "docs").glob("*.md")),
    ROOT / "trainer_core" / "pico" / "README.md",
    ROOT / "tools" / "pretrain_pico" / "README.md",
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("flux-lora", "python", "pytest", "git", "pip", "cd", "uv", "comfy", "accelerate", "unshare", ".ci/run")
PROGRAMS += ("hf", "wandb", "tensorboard")
OF_TWO_WORDS = ("wandb", "tensorboard")  # the folder is said in words
ALONE = ("pytest", ".ci/run")  # are commands without a word more
VARIABLES = re.compile(r"^(?:[A-Z_]+=\S+ )+")
SHELL = ("", "sh", "bash")
UV_RUN = "python -m uv run "
LINK = re.compile(r"\]\((?:<([^>]+)>|([^)\s]+))\)|src=\"([^\"]+)\"")
NAMED_TEST = re.compile(r"(tests/(?:\w+/)*test_\w+\.py)(?: -k (?:\"([^\"]+)\"|(\w+)))?")
GAP = "\0"  # what a formatted value stands for in a message


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str, *languages: str) -> list[str]:
    """The fenced blocks of one of these languages."""
    return [body for language, body in FENCE.findall(text) if language in languages]


def commands(text: str) -> Iterator[str]:
    """Every command of a page, without `python -m uv run` in front, which only chooses the environment."""
    for block in blocks(text, *SHELL):
        for line in block.replace("\\\n", " ").splitlines():
            if VARIABLES.sub("", line).split(" ")[0] in PROGRAMS:
                yield from map(_bare, re.split(r"\s{2,}(?![\s-])|\s+# ", line.strip())[0].split("&&"))
    for code in INLINE.findall(FENCE.sub("", text)):
        words = VARIABLES.sub("", code).split()
        if words and words[0] in PROGRAMS and _is_whole(words):
            yield from map(_bare, code.split("&&"))


def _is_whole(words: list[str]) -> bool:
    """A program's name alone only mentions it, and so does a launcher's without what it starts."""
    if words[0] == "accelerate":
        return "-m" in words
    return len(words) > (1 if words[0] in OF_TWO_WORDS else 2) or words[0] in ALONE


def mentions(text: str) -> set[str]:
    """Commands of flux-lora that are mentioned by their name alone."""
    return {code.split()[1] for code in INLINE.findall(FENCE.sub("", text)) if re.fullmatch(r"flux-lora [\w-]+", code)}


def _bare(command: str) -> str:
    return " ".join(command.split()).removeprefix(UV_RUN)


def all_commands() -> list[str]:
    """Each command once, in the order in which the pages have them."""
    return list(dict.fromkeys(command for page in PAGES for command in commands(text_of(page))))


def words_of(command: str) -> list[str]:
    return shlex.split(command)


def links(text: str) -> list[str]:
    """Where the page's links and pictures lead, those to other places than this repository left out."""
    found = ["".join(parts) for parts in LINK.findall(FENCE.sub("", text))]
    return [link.split("#")[0] for link in found if "://" not in link and not link.startswith("#")]


def rows(page: str) -> list[list[str]]:
    """The cells of those rows of a page's tables that begin with code."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in page.splitlines() if line.startswith("| `")]


def codes(cell: str) -> list[str]:
    return INLINE.findall(cell)


def message_templates() -> list[str]:
    """Every text in the code, with GAP where a value is filled in."""
    templates = []
    for folder in ("trainer_core", "nodes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(text_of(path))):
                if isinstance(node, ast.JoinedStr):
                    templates.append("".join(part.value if isinstance(part, ast.Constant) else GAP for part in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    templates.append(re.sub(r"%[sdrx]|%\.\df|\{\w*\}", GAP, node.value))
    return templates


def is_said(quote: str, templates: list[str]) -> bool:
    """Whether one text of the code has the pieces of the quote between its dots, in this order, over what is filled in."""
    pieces = [re.escape(piece.strip()) for piece in quote.split("…") if piece.strip()]
    pattern = re.compile(r"[\s\S]*".join(pieces))
    return any(pattern.search(template) for template in templates)
