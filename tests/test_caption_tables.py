"""Captions in tables: how rows find their pictures, and what is said of tables that cannot be read."""

import sys

import pytest
from caption_files import captions, csv_table, jsonl_table, only

from trainer_core.data.sample import Reject
from trainer_core.errors import JobError


def test_a_row_is_found_by_path_name_or_either_without_suffix(tmp_path):
    rows = (
        "filename,caption\ndeep/a.png,by path\ndeep/b,path without suffix\nc.png,by name\nd,by stem\n.\\deep\\e.png,windows\n"
    )
    table = csv_table(tmp_path, rows + f"{tmp_path}/f.png,absolute\ncafe\u0301.png,accents apart\nv1.5,dots\n")
    names = ("deep/a.png", "deep/b.jpg", "deep/c.png", "deep/d.webp", "deep/e.png", "f.png", "caf\u00e9.png", "v1.5.png")
    assert [caption for (caption,) in captions(tmp_path, *names, **table)] == [
        *("by path", "path without suffix", "by name", "by stem", "windows", "absolute", "accents apart", "dots")
    ]


def test_the_nearest_row_counts(tmp_path):
    table = csv_table(tmp_path, "filename,caption\na,stem\na.png,name\nx/a,path\n")
    assert captions(tmp_path, "x/a.png", "y/a.png", "a.jpg", **table) == [("path",), ("name",), ("stem",)]


def test_a_row_that_could_mean_two_pictures_is_an_error(tmp_path):
    table = csv_table(tmp_path, "filename,caption\na.png,one\n")
    with pytest.raises(JobError, match=r"line 2 of .*table\.csv: 'a\.png' could be x/a\.png or y/a\.png; write the path"):
        captions(tmp_path, "x/a.png", "y/a.png", **table)


def test_two_rows_for_one_picture_are_an_error(tmp_path):
    table = csv_table(tmp_path, 'filename,caption\na.png,"one\nline"\nb.png,two\n./a.png,three\n')
    with pytest.raises(JobError, match=r"table\.csv: line 3 and line 5 are both for 'a\.png'; take one out"):
        captions(tmp_path, **table)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"], ids=["comma", "semicolon", "tab", "bar"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_csv_comes_in_many_ways(tmp_path, delimiter, encoding):
    rows = [["filename", " caption"], ["a.png", '"grün; a, b|c\td"'], ["", ""], []]
    table = csv_table(tmp_path, "\r\n".join(delimiter.join(row) for row in rows) + "\r\n", encoding)
    assert only(tmp_path, **table) == "grün; a, b|c d"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"has no column 'filename'.*its columns are none"),
        (
            "filename,caption\na.png,a ball, red\n",
            r"line 2 of .*table\.csv has 3 cells, but there are 2 columns; put text that",
        ),
        ("filename,caption\n,a ball\n", r"line 2 of .*table\.csv: column 'filename' is empty"),
        ("filename,caption\na.png," + "x" * 200_000, r"line 2 of .*table\.csv cannot be read \(field larger than"),
    ],
    ids=["empty", "no quotes", "no name", "too large"],
)
def test_a_csv_that_cannot_be_read_names_the_line(tmp_path, text, said):
    with pytest.raises(JobError, match=said):
        captions(tmp_path, **csv_table(tmp_path, text))


def test_json_lines_hold_text_numbers_and_nothing(tmp_path):
    rows = [{"filename": "a.png", "caption": "line\u2028parted", "size": [1, 2]}, {"filename": 7, "caption": 1.5}]
    table = jsonl_table(tmp_path, *rows, {"filename": "b", "caption": None}, {"filename": "c"})
    assert captions(tmp_path, "a.png", "7.png", **table) == [("line parted",), ("1.5",)]
    for name in ("b.png", "c.png", "d.png"):
        with pytest.raises(Reject, match="it has no caption"):
            captions(tmp_path, name, **table, missing_caption="skip")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"filename": "a.png" "caption"', r"line 2 of .*table\.jsonl is no JSON"),
        ('["a.png", "a ball"]', r"line 2 of .*table\.jsonl is no JSON object"),
        ('{"filename": "a.png", "caption": ["a", "b"]}', r"line 2 of .*table\.jsonl: column 'caption' holds a list, not text"),
        ('{"filename": "a.png", "caption": "\\ud83c"}', r"line 2 of .*: column 'caption' holds half of a character pair"),
        ('{"caption": "a"}', r"line 2 of .*table\.jsonl: column 'filename' is empty"),
    ],
    ids=["broken", "list", "list of captions", "half a pair", "no name"],
)
def test_a_json_line_that_cannot_be_read_is_named(tmp_path, line, said):
    table = jsonl_table(tmp_path, {"filename": "b.png", "caption": "b"})
    with (tmp_path / "table.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(JobError, match=said):
        captions(tmp_path, **table)


def test_parquet_gives_its_captions(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    columns = {"name": ["a.png", "b.png", "c.png"], "text": ["  a ball", None, ""], "other": ["x", "y", None], "n": [1, 2, 3]}
    parquet.write_table(pyarrow.table(columns), path)
    table = {"caption_strategy": "parquet", "caption_table": str(path), "filename_column": "name"}
    assert only(tmp_path, **table, caption_column="text") == "a ball"
    others = {"caption_column": "text", "fallback_caption_column": "other", "missing_caption": "filename"}
    assert captions(tmp_path, "a.png", "b.png", "c.png", **table, **others) == [("a ball",), ("y",), ("c",)]
    with pytest.raises(JobError, match=r"has no column 'caption'; correct caption_column: .* 'name', 'text', 'other', 'n'"):
        captions(tmp_path, **table)
    path.write_bytes(b"PAR1 no table")
    with pytest.raises(JobError, match=r"table\.parquet cannot be read as parquet"):
        captions(tmp_path, **table)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "table.parquet").write_bytes(b"")
    with pytest.raises(JobError, match="needs pyarrow: run `pip install pyarrow`"):
        captions(tmp_path, caption_strategy="parquet", caption_table="table.parquet")


def test_a_table_that_is_not_there_and_rows_without_pictures_are_told(tmp_path, caplog):
    with pytest.raises(JobError, match=r"there is no file .*none\.csv; correct caption_table"):
        captions(tmp_path, caption_strategy="csv", caption_table="none.csv")
    (tmp_path / "deep").mkdir()
    for name in ("a.png", "deep/b.jpg"):
        (tmp_path / name).touch()
    table = csv_table(tmp_path, "filename,caption\na,x\nb.jpg,x\ndeep/b,x\n")
    captions(tmp_path, **table)
    assert not caplog.records
    with (tmp_path / "table.csv").open("a") as file:
        file.writelines(f"{name},x\n" for name in ("c.png", "deep/a.png", "b.png", "d"))
    captions(tmp_path, **table)
    assert (
        "table.csv: 4 of its rows are for no picture in" in caplog.text and "'c.png', 'deep/a.png', 'b.png', ..." in caplog.text
    )
