"""What the page brings in lands in its folder or is named with the reason, whatever the names and the archives say."""

import io
import random
import stat
import struct
import zipfile

import pytest
from node_files import node_file
from PIL import Image

from trainer_core import file_names

intake_file = node_file("intake")
Refusal = node_file("http_requests").Refusal


def png(size=(8, 8)):
    data = io.BytesIO()
    Image.new("RGB", size, "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def intake(tmp_path):
    (tmp_path / "staging").mkdir()
    (tmp_path / "input").mkdir()
    return intake_file.Intake(tmp_path / "staging")


def bring(intake, files):
    """Each of these as if it came alone."""
    for name, data in files.items():
        if incoming := intake.open(name):
            with incoming:
                incoming.write(data)


def unpack(intake, tmp_path, files, name="all.zip"):
    """All of these in an archive."""
    with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in files.items():
            archive.writestr(entry, data)
    intake.unpack(tmp_path / name)


def settled(intake, tmp_path, name="mine"):
    """The files of the new folder by their names."""
    folder = tmp_path / "input" / intake.settle(tmp_path / "input", name)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def reasons(intake):
    return {entry["file"]: entry["reason"] for entry in intake.left_out}


def test_pictures_and_captions_come_in_as_they_are(intake, tmp_path):
    files = {"a.png": png(), "a.txt": b"a ball", "a.caption": b"kohya's", "B.JPG": b"\xff\xd8\xff\xe0rest"}
    bring(intake, files)
    assert settled(intake, tmp_path) == files and intake.pictures == 2 and intake.left_out == []


def test_an_archive_is_unpacked_and_its_one_folder_is_the_dataset(intake, tmp_path):
    files = {"pictures/a.png": png(), "pictures/a.txt": b"a ball", "pictures/more/b.png": png()}
    unpack(intake, tmp_path, files)
    assert not (tmp_path / "all.zip").exists()
    assert settled(intake, tmp_path) == {name.removeprefix("pictures/"): data for name, data in files.items()}


@pytest.mark.parametrize("archived", [False, True])
def test_what_is_not_wanted_is_left_out_with_the_reason(intake, tmp_path, archived):
    files = {
        "good.png": png(),
        "../out.png": png(),
        "/root.png": png(),
        "a/../../out.png": png(),
        "..\\out.png": png(),
        "C:\\out.png": png(),
        ".hidden.png": png(),
        "__MACOSX/._a.png": png(),
        "run.exe": b"MZ",
        "noname": b"",
        "page.png": b"<script>alert(1)</script>",
        "a/b/c/d/e/deep.png": png(),
        "GOOD.png": png(),
        "long.txt": b"x" * (intake_file.LARGEST_CAPTION + 1),
    }
    bring(intake, files) if not archived else unpack(intake, tmp_path, files)
    assert reasons(intake) == {
        "../out.png": "has a path that leads out of the folder",
        "/root.png": "has a path that leads out of the folder",
        "a/../../out.png": "has a path that leads out of the folder",
        "..\\out.png": "has a path that leads out of the folder",
        "C:\\out.png": "has a path that leads out of the folder",
        ".hidden.png": "is a hidden file",
        "__MACOSX/._a.png": "is a hidden file",
        "run.exe": "is neither a picture nor a caption (.txt)",
        "noname": "is neither a picture nor a caption (.txt)",
        "page.png": "is no picture, whatever its name says",
        "a/b/c/d/e/deep.png": "lies too many folders deep",
        "GOOD.png": "has the name of another file",
        "long.txt": "is larger than 1 MiB",
    }
    assert settled(intake, tmp_path) == {"good.png": files["good.png"]}
    assert {path.name for path in tmp_path.iterdir()} <= {"staging", "input"}


def test_names_that_some_system_would_refuse_are_changed_and_captions_stay_with_their_pictures(intake, tmp_path):
    long = "x" * 300
    names = ("con", 'a<b>:"c|d?*', "tab\there", "nul.tar", long, "e\u0301", "\u202fscreen\u200bshot")
    bring(intake, {f"{name}{suffix}": data for name in names for suffix, data in ((".png", png()), (".txt", b"a"))})
    assert {name for name in settled(intake, tmp_path) if name.endswith(".png")} == {
        f"{name}.png" for name in ("_con", "a_b___c_d__", "tab_here", "_nul.tar", long[:120], "\xe9", "_screen_shot")
    }
    assert len(settled(intake_again(tmp_path), tmp_path)) == 1


def intake_again(tmp_path):
    """Another one with a picture in it, beside the first."""
    (tmp_path / "again").mkdir()
    intake = intake_file.Intake(tmp_path / "again")
    bring(intake, {"a.png": png()})
    return intake


def test_a_name_that_is_taken_gets_a_number(intake, tmp_path):
    bring(intake, {"a.png": png()})
    assert intake.settle(tmp_path / "input", "mine") == "mine"
    assert intake_again(tmp_path).settle(tmp_path / "input", "mine") == "mine 2"


def test_without_a_picture_nothing_is_made(intake, tmp_path):
    bring(intake, {"a.txt": b"a ball", "b.png": b"no"})
    with pytest.raises(Refusal, match=r"there was no picture among the files: b\.png is no picture"):
        intake.settle(tmp_path / "input", "mine")
    assert not any((tmp_path / "input").iterdir())


def test_links_and_locked_entries_of_an_archive_are_left_out(intake, tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lzma.png", png(), zipfile.ZIP_LZMA)
        archive.writestr("a.png", png())
    intake.unpack(tmp_path / "all.zip")
    assert reasons(intake) == {
        "link.png": "is a link or something else that is no file",
        "lzma.png": "is packed with a password or in an unusual way",
    }
    assert settled(intake, tmp_path).keys() == {"a.png"}


def test_a_bomb_is_refused_while_it_unfolds(intake, tmp_path, monkeypatch):
    monkeypatch.setattr(intake_file, "MOST_BYTES", 10 << 20)
    with pytest.raises(Refusal) as refused:
        unpack(intake, tmp_path, {f"{number}.png": bytes(4 << 20) for number in range(4)})
    assert refused.value.status == 413
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 13 << 20


def test_an_entry_that_says_it_is_smaller_than_it_is_counts_in_full(intake, tmp_path):
    unpack(intake, tmp_path, {"a.png": png(), "b.png": png() + bytes(100_000)})
    with zipfile.ZipFile(tmp_path / "lie.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c.png", png() + bytes(100_000))
    data = (tmp_path / "lie.zip").read_bytes()
    (tmp_path / "lie.zip").write_bytes(data.replace(struct.pack("<L", 100_000 + len(png())), struct.pack("<L", 50)))
    intake.unpack(tmp_path / "lie.zip")
    assert reasons(intake) == {"c.png": "is damaged in the archive"}


def test_too_many_files_are_refused_and_a_list_of_millions_is_not_even_read(intake, tmp_path, monkeypatch):
    for end in (
        b"PK\x05\x06" + struct.pack("<HHHHLLH", 0, 0, 9, 9, 1 << 30, 0, 0),
        b"PK\x06\x06" + bytes(36) + struct.pack("<QQ", 1 << 33, 0) + b"PK\x05\x06" + b"\xff" * 16 + bytes(2),
    ):
        (tmp_path / "list.zip").write_bytes(end)
        with pytest.raises(Refusal, match="more than 20000 files"):
            intake.unpack(tmp_path / "list.zip")
    monkeypatch.setattr(intake_file, "MOST_FILES", 3)
    with pytest.raises(Refusal, match="more than 3 files"):
        bring(intake, {f"{number}.png": png() for number in range(4)})


@pytest.mark.parametrize("data", [b"", b"no archive", b"PK\x05\x06", b"PK\x05\x06" + b"\xff" * 18, b"PK\x03\x04" * 100])
def test_what_is_no_archive_is_refused(intake, tmp_path, data):
    (tmp_path / "all.zip").write_bytes(data)
    with pytest.raises(Refusal, match="the archive is damaged, or no zip file"):
        intake.unpack(tmp_path / "all.zip")


def test_a_damaged_entry_leaves_the_others(intake, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for name in ("a.png", "b.png"):
            archive.writestr(name, png())
    data = bytearray((tmp_path / "all.zip").read_bytes())
    data[data.index(png()) + 40] ^= 1
    (tmp_path / "all.zip").write_bytes(data)
    intake.unpack(tmp_path / "all.zip")
    assert reasons(intake) == {"a.png": "is damaged in the archive"} and settled(intake, tmp_path).keys() == {"b.png"}


def test_an_entry_without_a_name_leaves_the_others(intake, tmp_path):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.writestr("a.png", png())
        archive.writestr("x.png", png())
    data = bytearray((tmp_path / "all.zip").read_bytes())
    entry, end = data.rindex(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<L", struct.unpack("<L", data[end + 12 : end + 16])[0] - len("x.png"))
    del data[entry + 46 : entry + 46 + len("x.png")]
    data[entry + 28 : entry + 30] = bytes(2)  # the length of the name
    (tmp_path / "all.zip").write_bytes(data)
    intake.unpack(tmp_path / "all.zip")
    assert settled(intake, tmp_path).keys() == {"a.png"} and reasons(intake) == {"": "is a hidden file"}


def test_archives_with_bytes_gone_wrong_are_refused_or_named_and_nothing_else(tmp_path):
    source = io.BytesIO()
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("a.png", png()), ("b/b.png", png((64, 64))), ("b/b.txt", b"a ball")):
            archive.writestr(name, data)
    draw = random.Random(8)
    outcomes = set()
    for number in range(300):
        data = bytearray(source.getvalue())
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "all.zip").write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
        try:
            one = intake_file.Intake(folder)
            one.unpack(folder / "all.zip")
            outcomes.add("named" if one.left_out else "whole")
        except Refusal:
            outcomes.add("refused")
        assert {path.name for path in folder.iterdir()} <= {"files", "all.zip"}
    assert outcomes == {"named", "whole", "refused"}
    assert {path.name for path in tmp_path.iterdir()} == set(map(str, range(300)))


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "...", "a/b", "a\\b", "a\0", "CON", "com1.png", "a.", " a", "x" * 300, "\ud800"]
)
def test_a_cleaned_name_has_nothing_wrong_however_wrong_it_was(name):
    assert file_names.problem_of(name)
    assert not file_names.problem_of(file_names.cleaned(name, "dataset"))
