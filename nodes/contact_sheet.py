"""The preview of DatasetBucket: every bucket with its pictures, cropped as they will be trained."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..trainer_core.data.buckets import Bucket
from ..trainer_core.data.index import count_buckets
from ..trainer_core.data.sample import Sample

CELL, GAP, LABEL = 96, 6, 22  # in pixels
COLUMNS, MOST_IN_BUCKET = 8, 24
PAPER, INK = (24, 24, 28), (220, 220, 225)


def draw_contact_sheet(samples: Sequence[Sample]) -> Image.Image:
    """A sheet of fixed width; of a large bucket only the first pictures are shown, and the label says how many there are."""
    ordered = sorted(samples, key=lambda sample: (sample.bucket, sample.path))
    shelves = [
        _shelf(bucket, len(group), group[:MOST_IN_BUCKET])
        for bucket, group in ((bucket, list(items)) for bucket, items in groupby(ordered, key=lambda s: s.bucket))
    ]
    sheet = Image.new("RGB", (shelves[0].width, sum(shelf.height for shelf in shelves)), PAPER)
    top = 0
    for shelf in shelves:
        sheet.paste(shelf, (0, top))
        top += shelf.height
    return sheet


def describe(samples: Sequence[Sample], folder: Path, note: str) -> str:
    """The report: counts, buckets, and the first captions, for a text node."""
    buckets = [f"  {name}: {count}" for name, count in count_buckets(list(samples)).items()]
    captions = [f"  {sample.path.name}: {sample.caption}" for sample in samples[:5]]
    head = f"{len(samples)} pictures in {folder}"
    return "\n".join([head, note, "buckets:", *buckets, "first captions:", *captions])


def _shelf(bucket: Bucket, count: int, samples: Sequence[Sample]) -> Image.Image:
    """One bucket: a label and rows of thumbnails."""
    rows = -(-len(samples) // COLUMNS)
    shelf = Image.new("RGB", (COLUMNS * (CELL + GAP) + GAP, LABEL + rows * (CELL + GAP)), PAPER)
    shown = "" if count == len(samples) else f" (first {len(samples)} shown)"
    label = f"{bucket}   {count} picture{'s' if count > 1 else ''}{shown}"
    ImageDraw.Draw(shelf).text((GAP, 4), label, fill=INK, font=ImageFont.load_default())
    for index, sample in enumerate(samples):
        row, column = divmod(index, COLUMNS)
        thumbnail = _thumbnail(sample)
        left = GAP + column * (CELL + GAP) + (CELL - thumbnail.width) // 2
        shelf.paste(thumbnail, (left, LABEL + row * (CELL + GAP) + (CELL - thumbnail.height) // 2))
    return shelf


def _thumbnail(sample: Sample) -> Image.Image:
    """The picture at its bucket's aspect, as large as a cell allows. The decoder shrinks large JPEGs as it reads."""
    scale = CELL / max(sample.bucket)
    size = (max(1, round(sample.bucket.width * scale)), max(1, round(sample.bucket.height * scale)))
    with Image.open(sample.path) as file:
        file.draft("RGB", (CELL * 2, CELL * 2))
        upright = ImageOps.exif_transpose(file).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", upright.size, (255, 255, 255, 255)), upright).convert("RGB")
    return ImageOps.fit(flat, size, Image.Resampling.LANCZOS)
