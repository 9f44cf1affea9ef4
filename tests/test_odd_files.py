"""200 damaged and odd files beside a few good ones: each is left out with its reason, nothing is touched, the run goes on."""

import hashlib
import os
import random
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from support import job_data, run_in_process
from trainer_core.data.facts import look_at
from trainer_core.data.index import index_datasets
from trainer_core.data.sample import Reject
from trainer_core.flux.flavours import FLAVOURS
from trainer_core.job_file import parse_job
from trainer_core.specs.dataset import DatasetSpec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="makes pipes, links and names that only Linux has")

OF_EACH = 14
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}
GOOD_NAMES = (
    'it\'s "quoted".png',
    "smile 😀.jpg",
    "кошка на крыше.png",
    "trailing blank .png",
    "trailing blanks.png  ",
    "n" * 246 + ".png",
    "percent %s {0} $HOME `ls`.png",
    "-rf.png",
    "line\nbreak.png",
    "UPPER.PNG",
)


def encoded(form: str, seed: int, size: tuple[int, int] = (96, 72)) -> bytes:
    noise = Image.frombytes("RGB", (24, 18), random.Random(seed).randbytes(24 * 18 * 3)).resize(size)
    out = BytesIO()
    noise.save(out, form)
    return out.getvalue()


def cut(seed: int) -> tuple[str, bytes]:
    """Without its end, by less and less."""
    form = list(SUFFIXES)[seed % 5]
    data = encoded(form, seed)
    return SUFFIXES[form], data[: len(data) * (5 + seed) // 20]


def png_claiming(width: int, height: int) -> bytes:
    """A small file that says it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * 16)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def scrambled(seed: int) -> tuple[str, bytes]:
    """A header, then anything."""
    form = list(SUFFIXES)[seed % 3]
    return SUFFIXES[form], encoded(form, seed)[:40] + random.Random(seed).randbytes(500)


def one_pixel(seed: int) -> tuple[str, bytes]:
    return ".png", encoded("PNG", seed, [(1, 1), (1, 90), (90, 1), (7, 300)][seed % 4])


def text(seed: int) -> tuple[str, bytes]:
    return [".png", ".jpg", ".webp"][seed % 3], f"caption {seed}: ein Bär auf <html>, кот".encode() * (seed + 1)


def wide(seed: int) -> tuple[str, bytes]:
    return ".png", png_claiming(30_000, 16 + seed)


# kind -> (what its bytes are, what the reason says)
DAMAGED: dict[str, tuple[Callable[[int], tuple[str, bytes]], str]] = {
    "cut": (cut, ""),  # what exactly is missing depends on the format
    "empty": (lambda seed: (list(SUFFIXES.values())[seed % 5], b""), "is empty (0 bytes)"),
    "text": (text, "is a text file, not a picture"),
    "zeros": (lambda seed: (".jpg", bytes(100 + seed)), "is no picture, or its first bytes are damaged"),
    "noise": (lambda seed: (".png", random.Random(seed).randbytes(3000)), "is no picture, or its first bytes are damaged"),
    "archive": (lambda seed: (".png", b"PK\x03\x04" + bytes(60)), "is no picture, or its first bytes are damaged"),
    "scrambled": (scrambled, ""),
    "onepixel": (one_pixel, "nothing can be learned from less than 8"),
    "wide": (wide, "at most 16384 a side are read"),
    "bomb": (lambda seed: (".png", png_claiming(60_000, 60_000 + seed)), "million"),
    "large": (lambda seed: (".png", png_claiming(15_000, 12_000 + seed)), "million"),
    "drawing": (lambda seed: (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\n"), "drawing (EPS)"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The damaged files by kind, odd things of which a folder holds only one each, and good files with odd names."""
    folder = tmp_path_factory.mktemp("odd files")
    for kind, (make, _) in DAMAGED.items():
        (folder / kind).mkdir()
        for seed in range(OF_EACH):
            suffix, data = make(seed)
            (folder / kind / f"{kind}_{seed:02d}{suffix}").write_bytes(data)
    things = folder / "things"
    things.mkdir()
    for number in range(10):
        os.mkfifo(things / f"pipe_{number}.png")
        (things / f"folder_{number}.png").mkdir()
        (things / f"gone_{number}.png").symlink_to(folder / f"not there {number}")
        (things / f"circle_{number}.png").symlink_to(things / f"circle_{number}.png")
    with socket.socket(socket.AF_UNIX) as listening:
        here = os.getcwd()
        os.chdir(things)
        listening.bind("socket_0.png")
        os.chdir(here)
    (things / "round").symlink_to(folder, target_is_directory=True)
    (things / "up.png").symlink_to(folder.parent, target_is_directory=True)
    (things / "closed.png").write_bytes(encoded("PNG", 1))
    (things / "closed.png").chmod(0)
    (things / "closed folder").mkdir(mode=0)
    good = folder / "good names "
    good.mkdir()
    for seed, name in enumerate(GOOD_NAMES):
        (good / name).write_bytes(encoded("JPEG" if name.endswith("jpg") else "PNG", seed))
    (good / os.fsdecode(b"no \xff text.png")).write_bytes(encoded("PNG", 50))
    (good / "really a jpeg.png").write_bytes(encoded("JPEG", 51))
    return folder


def state(folder: Path) -> str:
    """Of all names, bytes, sizes, modes and times below a folder; those of access not."""
    digest = hashlib.sha256()
    for place, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files + folders):
            path = Path(place, name)
            told = path.lstat()
            digest.update(os.fsencode(path) + f"{told.st_mode}|{told.st_mtime_ns}|{told.st_ctime_ns}|{told.st_size}".encode())
            if path.is_file() and os.access(path, os.R_OK):
                digest.update(path.read_bytes())
    return digest.hexdigest()


def good_files(folder: Path) -> set[str]:
    readable = {"closed.png"} if os.access(folder / "things" / "closed.png", os.R_OK) else set()  # root reads everything
    return {path.name for path in (folder / "good names ").iterdir()} | readable


def test_each_odd_file_is_left_out_with_its_reason_and_nothing_is_touched(folder, tmp_path):
    before = state(folder)
    spec = DatasetSpec(id="odd", instance_data_dir=str(folder), caption_strategy="filename")
    for _ in ("looked at", "remembered"):
        told = index_datasets((spec,), FLAVOURS["pico"], tmp_path / "cache")
        assert {sample.path.name for sample in told.samples} == good_files(folder)
        reasons = {entry.path.relative_to(folder).as_posix(): entry.reason for entry in told.rejected}
        assert len(reasons) == len(told.rejected) >= 200
        for kind, (_, reason) in DAMAGED.items():
            of_kind = [text for name, text in reasons.items() if name.startswith(f"{kind}/")]
            assert len(of_kind) == OF_EACH and all(reason in text for text in of_kind), (kind, of_kind)
        for kind, reason in {
            "pipe": "is a pipe",
            "folder": "is a folder",
            "gone": "is a link to a file that is not there",
            "circle": "is a link that leads back to itself",
            "socket": "is a socket",
            "round": "leads to a folder that is read already",
            "up": "leads to a folder that is read already, or that holds this one",
        }.items():
            assert all(reason in text for name, text in reasons.items() if name.startswith(f"things/{kind}")), kind
        assert not any("BytesIO" in text or "Errno" in text for text in reasons.values())
    assert state(folder) == before


def test_nothing_but_a_picture_is_ever_opened(folder):
    for name, reason in {"pipe_0.png": "is a pipe", "socket_0.png": "is a socket", "folder_0.png": "is a folder"}.items():
        with pytest.raises(Reject, match=reason):
            look_at(folder / "things" / name)


@pytest.mark.skipif(sys.platform == "linux" and os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_said(folder):
    with pytest.raises(Reject, match="may not be read"):
        look_at(folder / "things" / "closed.png")


def test_a_jpeg_that_lacks_only_its_last_bytes_is_seen_though_it_is_decoded_small(tmp_path):
    path = tmp_path / "large.jpg"
    data = encoded("JPEG", 7, (1600, 1200))
    path.write_bytes(data)
    assert look_at(path)[:2] == (1600, 1200)
    path.write_bytes(data[:-30])
    with pytest.raises(Reject, match="is cut off: its end is missing"):
        look_at(path)


def test_a_run_trains_on_what_is_good(folder, tmp_path, cache):
    before = state(folder)
    dataset = {"instance_data_dir": str(folder), "caption_strategy": "filename"}
    job = parse_job(job_data(folder, datasets=[dataset], training={"max_train_steps": 2}))
    result = run_in_process(job, tmp_path / "runs", cache)
    assert Path(result["lora"]).is_file() and len(result["losses"]) == 2
    assert state(folder) == before
