"""A safetensors file whose header lies is refused by everything that reads one, before a tensor is touched."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainer_core.data.shards import DamagedShard, read_shard
from trainer_core.errors import JobError
from trainer_core.flux.files import read_header, read_tensors
from trainer_core.flux.tensors import open_tensors

READERS = (read_header, read_tensors, open_tensors, read_shard, load_file)


def written(path: Path, header: Any, data: bytes, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def tensor(start: Any, end: Any, shape: Any = (4,), dtype: Any = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [start, end]}


LIES = {
    "overlap": {"a": tensor(0, 4), "b": tensor(2, 6)},
    "the same place": {"a": tensor(0, 4), "b": tensor(0, 4)},
    "hole": {"a": tensor(0, 4), "b": tensor(6, 10)},
    "backwards": {"a": tensor(4, 0)},
    "larger than its shape": {"a": tensor(0, 8)},
    "smaller than its shape": {"a": tensor(0, 4, (1 << 40, 1 << 40))},
    "negative": {"a": tensor(-4, 0)},
    "a fraction": {"a": tensor(0, 4.0)},
    "negative shape": {"a": tensor(0, 4, (-2, -2))},
    "no shape": {"a": tensor(0, 4, None)},
    "huge": {"a": tensor(0, 1 << 62, (1 << 62,))},
    "no table": {"a": [1]},
    "metadata that are no texts": {"__metadata__": {"a": 1}, "a": tensor(0, 4)},
    "list": [1, 2],
    "brackets": b"[" * 100_000,
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str, reader: Any) -> None:
    path = written(tmp_path / "a.safetensors", LIES[lie], bytes(10))
    if reader is read_shard and lie == "huge":  # a shard that was cut; its entries are checked one by one
        return
    with pytest.raises((JobError, DamagedShard, SafetensorError)) as refused:
        reader(path)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("length", [0, 1, 100 << 20, (100 << 20) + 1, 1 << 40, (1 << 64) - 1])
def test_a_header_that_claims_to_be_as_long_as_no_file_is(tmp_path: Path, length: int, reader: Any) -> None:
    path = written(tmp_path / "a.safetensors", {"a": tensor(0, 4)}, bytes(4), length)
    with pytest.raises((JobError, DamagedShard, SafetensorError)):
        reader(path)


def test_a_file_that_goes_on_behind_its_tensors_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {"a": tensor(0, 4)}, bytes(4) + b"PK\x03\x04")
    with pytest.raises(JobError, match="goes on behind its tensors"):
        read_header(path)


def test_an_index_names_no_file_elsewhere(tmp_path: Path) -> None:
    for named in ("../a.safetensors", "/etc/a.safetensors", "..", "", 7):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": named}}), encoding="utf-8")
        with pytest.raises(JobError, match="does not lie beside it"):
            open_tensors(tmp_path)
    for text in ("[", "[]", '{"weight_map": 1}'):
        (tmp_path / "model.safetensors.index.json").write_text(text, encoding="utf-8")
        with pytest.raises(JobError, match="is no index of a model"):
            open_tensors(tmp_path)
