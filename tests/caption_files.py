"""Caption files and tables for tests, and what is read from them."""

import json
from pathlib import Path

from trainer_core.data.captions import caption_reader
from trainer_core.data.find import Found
from trainer_core.specs.dataset import DatasetSpec


def captions(folder: Path, *names: str, **fields: object) -> list[tuple[str, ...]]:
    """The captions of these pictures, which need not be there."""
    read = caption_reader(DatasetSpec(instance_data_dir=str(folder), **fields), folder)
    return [read(Found(str(folder / name), str(folder), name, (0, 0, 0))) for name in names or ("a.png",)]


def only(folder: Path, **fields: object) -> str:
    """The one caption of a.png."""
    ((caption,),) = captions(folder, **fields)
    return caption


def files(folder: Path, **texts: str) -> Path:
    """A folder with these text files; double underscores in a name part folders."""
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def csv_table(folder: Path, text: str, encoding: str = "utf-8") -> dict[str, str]:
    (folder / "table.csv").write_text(text, encoding=encoding)
    return {"caption_strategy": "csv", "caption_table": "table.csv"}


def jsonl_table(folder: Path, *rows: dict) -> dict[str, str]:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (folder / "table.jsonl").write_text(lines + "\n", encoding="utf-8")
    return {"caption_strategy": "jsonl", "caption_table": str(folder / "table.jsonl")}
