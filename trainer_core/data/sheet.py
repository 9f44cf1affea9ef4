"""The contact sheet: every bucket with its pictures whole, and on each what training makes of it.

The crop's frame is drawn over the picture and what falls outside is dimmed; what a mask takes out is tinted; the reference
sits in a corner, the caption below. Of a large bucket only the first pictures are shown, the decoder shrinks JPEGs while it
reads, and several threads decode, so that a sheet of a large dataset takes a few seconds. Pillow alone.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps

from ..errors import JobError
from .buckets import Fit
from .colours import to_alpha, to_rgb
from .report import bare_reason
from .sample import Index, Rejected, Sample
from .threads import Threads
from .upright import EXIF_ORIENTATION, UNREADABLE, load_mask, open_picture

CELL, GAP, MARGIN, LINE, TITLE = 160, 12, 20, 16, 42  # in pixels
COLUMNS, MOST_ROWS, FEW_BUCKETS, MOST_BUCKETS = 8, 2, 8, 32  # of more than a few buckets, one row each is shown
WIDTH = 2 * MARGIN + COLUMNS * CELL + (COLUMNS - 1) * GAP
PAPER, SLATE, INK, SOFT, FAINT = (22, 23, 27), (34, 36, 42), (235, 236, 240), (190, 193, 202), (150, 153, 163)
FRAME, OTHER_FRAME, TINT, WRONG = (255, 196, 64), (120, 200, 255), (226, 64, 96), (240, 110, 96)
DIMMED, TINTED, INSET = 0.3, 0.65, 0.38  # light outside of the crop; strength of the tint; a reference's edge
LEGEND = {
    "frame": (FRAME, "what is trained on; what is dimmed is cropped away"),
    "others": (OTHER_FRAME, "the other crops"),
    "mask": (TINT, "masked out"),
    "reference": (FAINT, "in the corner: the reference"),
}
MOST_PIXELS = 50_000_000  # rejected files may be of any size: a larger one is not decoded for its thumbnail
PLAIN = ("RGB", "RGBA", "L", "LA")  # modes that need no care
FONTS = ("DejaVuSans.ttf", "segoeui.ttf", "Arial.ttf", "Helvetica.ttc", "LiberationSans-Regular.ttf")


class Cell(NamedTuple):
    """A thumbnail to be made, at most so high, and the lines below it."""

    draw: Callable[[], Image.Image]
    height: int
    lines: tuple[str, ...]
    ink: tuple[int, int, int] = SOFT


class Block(NamedTuple):
    """Cells that belong together, under a title and a line of counts."""

    title: str
    note: str
    cells: list[Cell]
    ink: tuple[int, int, int] = INK


def draw_sheet(index: Index) -> Image.Image:
    """An RGB sheet of fixed width. Buckets stand by dataset, the fullest first; what is left out comes last, with reasons."""
    font = _font(13)
    blocks = [*_buckets(index.samples, font), *_rejected(index.rejected, font)]
    if not blocks:
        blocks = [Block("no pictures", "every dataset is disabled", [])]
    shelves = _shelves(blocks)
    heights = [max(map(_height, shelf)) for shelf in shelves]
    legend = _legend(index.samples)
    top = MARGIN + (2 * LINE if legend else 0)
    sheet = Image.new("RGB", (WIDTH, top + sum(heights) + MARGIN), PAPER)
    _draw_legend(ImageDraw.Draw(sheet), legend, font)
    with Threads(max_workers=os.cpu_count() or 1) as pool:
        for shelf, height in zip(shelves, heights, strict=True):
            column = 0
            for block in shelf:
                _draw_block(sheet, block, MARGIN + column * (CELL + GAP), top, pool)
                column += _columns(block)
            top += height
    return sheet


def _buckets(samples: Sequence[Sample], font: ImageFont.ImageFont) -> Iterator[Block]:
    """A block for each bucket of each dataset; of very many buckets the last are only counted."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.dataset_id, str(sample.bucket)), []).append(sample)
    datasets = list(dict.fromkeys(sample.dataset_id for sample in samples))
    ordered = sorted(groups.items(), key=lambda item: (datasets.index(item[0][0]), -len(item[1]), item[0][1]))
    most = COLUMNS * (MOST_ROWS if len(ordered) <= FEW_BUCKETS else 1)
    for (dataset_id, bucket), group in ordered[:MOST_BUCKETS]:
        shown, per_epoch = len(group[:most]), sum(sample.passes for sample in group)
        pictures = f"{len(group)} picture{'s' * (len(group) > 1)}"
        note = [pictures] + [f"{per_epoch} an epoch"] * (per_epoch > len(group))
        note += [f"first {shown}"] * (shown < len(group))
        title = f"{dataset_id}  {bucket}" if len(datasets) > 1 else bucket
        cells = [
            Cell(
                lambda sample=sample: _thumbnail(sample),
                _within((sample.facts.width, sample.facts.height))[1],
                _wrapped(sample.caption or "(no caption)", font),
            )
            for sample in group[:most]
        ]
        yield Block(title, ", ".join(note), cells)
    rest = [len(group) for _, group in ordered[MOST_BUCKETS:]]
    if rest:
        yield Block(f"and {len(rest)} more buckets", f"with {sum(rest)} pictures, none of them shown here", [])


def _rejected(rejected: Sequence[Rejected], font: ImageFont.ImageFont) -> Iterator[Block]:
    if rejected:
        cells = [
            Cell(
                lambda path=path: _crossed(path),
                CELL,
                (*_wrapped(path.name, font, 1), *_wrapped(bare_reason(path, reason), font, 3)),
                WRONG,
            )
            for _, path, reason in rejected[:COLUMNS]
        ]
        more = f", first {COLUMNS}" if len(rejected) > COLUMNS else ""
        yield Block("left out", f"{len(rejected)} file{'s' * (len(rejected) > 1)}{more}", cells, WRONG)


def _shelves(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks side by side as long as they fit; one of several rows has its shelf to itself."""
    shelves: list[list[Block]] = []
    free = 0
    for block in blocks:
        if _columns(block) > free or block.title == "left out":
            shelves.append([])
            free = COLUMNS
        shelves[-1].append(block)
        free -= _columns(block)
    return shelves


def _columns(block: Block) -> int:
    return min(COLUMNS, max(1 if block.cells else 2, len(block.cells)))


def _height(block: Block) -> int:
    """In pixels: title, rows of thumbnails with their lines, and the space below."""
    rows = -(-len(block.cells) // COLUMNS)
    return TITLE + rows * sum(_row(block)) + GAP


def _row(block: Block) -> tuple[int, int]:
    """How high the thumbnails of a block are, and what stands below them."""
    lines = max((len(cell.lines) for cell in block.cells), default=0)
    return max((cell.height for cell in block.cells), default=0), lines * LINE + GAP


def _draw_block(sheet: Image.Image, block: Block, left: int, top: int, pool: Threads) -> None:
    draw, small = ImageDraw.Draw(sheet), _font(13)
    draw.text((left, top), block.title, fill=block.ink, font=_font(15))
    draw.text((left, top + LINE + 3), block.note, fill=FAINT, font=small)
    height, below = _row(block)
    pictures = pool.map(lambda cell: cell.draw(), block.cells)
    for position, (cell, picture) in enumerate(zip(block.cells, pictures, strict=True)):
        row, column = divmod(position, COLUMNS)
        x, y = left + column * (CELL + GAP), top + TITLE + row * (height + below)
        draw.rectangle((x, y, x + CELL - 1, y + height - 1), fill=SLATE)
        sheet.paste(picture, (x + (CELL - picture.width) // 2, y + (height - picture.height) // 2))
        for number, line in enumerate(cell.lines):
            draw.text((x, y + height + 3 + number * LINE), line, fill=cell.ink if number == 0 else SOFT, font=small)


def _thumbnail(sample: Sample) -> Image.Image:
    """The whole picture as large as a cell, with its mask, its crops, and its reference in the corner."""
    try:
        upright, alpha = _opened(sample.path, sample.background)
        picture = _tinted(upright, _mask(sample, alpha, upright.size))
    except (*UNREADABLE, JobError):
        return _cross()
    frames = list(dict.fromkeys(_frame(view, sample, picture.size) for view in sample.views))
    picture = _dimmed(picture, frames[0])
    draw = ImageDraw.Draw(picture)
    for frame in frames[:0:-1]:
        draw.rectangle(frame, outline=OTHER_FRAME, width=1)
    draw.rectangle(frames[0], outline=FRAME, width=2)
    if sample.reference is not None:
        _paste_reference(picture, sample.reference.path, sample.background)
    return picture


def _opened(path: Path, background: str) -> tuple[Image.Image, Image.Image]:
    """The upright picture, small and on its background, and its alpha."""
    with open_picture(path) as file:
        file.draft("RGB", (2 * CELL, 2 * CELL))
        image = file if file.mode in PLAIN else _eight_bits(file, background)
        small = image.resize(_within(image.size), Image.Resampling.BICUBIC, reducing_gap=2.0)
        small.getexif()[EXIF_ORIENTATION] = file.getexif().get(EXIF_ORIENTATION, 1)
    with_alpha = ImageOps.exif_transpose(small).convert("RGBA")
    flat = Image.alpha_composite(Image.new("RGBA", with_alpha.size, background), with_alpha).convert("RGB")
    return flat, with_alpha.getchannel("A")


def _eight_bits(file: Image.Image, background: str) -> Image.Image:
    """What Pillow cannot resize as it is, or would not convert well, in RGBA."""
    picture = to_rgb(file, background).convert("RGBA")
    picture.putalpha(to_alpha(file))
    return picture


def _within(size: tuple[int, int], edge: int = CELL) -> tuple[int, int]:
    """The size with its longer side brought to the edge."""
    scale = edge / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _mask(sample: Sample, alpha: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """What is trained on in 8 bits, at this size."""
    if sample.mask is None:
        return None
    return alpha if sample.mask.path == sample.path else load_mask(sample.mask.path, sample.path).resize(size)


def _tinted(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    if mask is None:
        return picture
    hidden = ImageChops.invert(mask).point(lambda level: round(level * TINTED))
    return Image.composite(Image.new("RGB", picture.size, TINT), picture, hidden)


def _frame(view: Fit, sample: Sample, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What a view keeps, in pixels of the thumbnail: left, top, right and bottom, all within it."""
    across, down = size[0] / view.width, size[1] / view.height
    right, bottom = view.left + sample.bucket.width, view.top + sample.bucket.height
    return (
        max(0, round(view.left * across)),
        max(0, round(view.top * down)),
        min(size[0], round(right * across)) - 1,
        min(size[1], round(bottom * down)) - 1,
    )


def _dimmed(picture: Image.Image, frame: tuple[int, int, int, int]) -> Image.Image:
    """The picture with all that is outside of the frame darkened."""
    kept = Image.new("L", picture.size, 0)
    ImageDraw.Draw(kept).rectangle(frame, fill=255)
    return Image.composite(picture, picture.point(lambda level: round(level * DIMMED)), kept)


def _paste_reference(picture: Image.Image, path: Path, background: str) -> None:
    """A small picture of the reference in the lower right corner; one that cannot be read is a cross."""
    edge = round(min(CELL, 1.5 * min(picture.size)) * INSET)
    try:
        small = _opened(path, background)[0]
    except (*UNREADABLE, JobError):
        small = _cross()
    small = ImageOps.expand(small.resize(_within(small.size, edge)), 2, FAINT)
    picture.paste(small, (picture.width - small.width, picture.height - small.height))


def _crossed(path: Path) -> Image.Image:
    """A file that is left out: dimmed if it can be decoded without great cost, and crossed."""
    try:
        with open_picture(path) as file:
            size = file.size
        picture = _opened(path, "white")[0] if size[0] * size[1] <= MOST_PIXELS else _cross()
    except (*UNREADABLE, JobError):
        return _cross()
    return _dimmed(picture, (-1, -1, -1, -1))


def _cross() -> Image.Image:
    """What stands for a picture that cannot be decoded."""
    picture = Image.new("RGB", (CELL, CELL), SLATE)
    draw, edge = ImageDraw.Draw(picture), CELL // 3
    for ends in ((edge, edge, 2 * edge, 2 * edge), (edge, 2 * edge, 2 * edge, edge)):
        draw.line(ends, fill=WRONG, width=4)
    return picture


def _legend(samples: Sequence[Sample]) -> list[str]:
    """The keys of LEGEND for which there is something to see."""
    present = {
        "frame": bool(samples),
        "others": any(len({(view.left, view.top) for view in sample.views}) > 1 for sample in samples),
        "mask": any(sample.mask is not None for sample in samples),
        "reference": any(sample.reference is not None for sample in samples),
    }
    return [key for key, there in present.items() if there]


def _draw_legend(draw: ImageDraw.ImageDraw, legend: Sequence[str], font: ImageFont.ImageFont) -> None:
    left = MARGIN
    for colour, text in map(LEGEND.__getitem__, legend):
        draw.rectangle((left, MARGIN - 4, left + 12, MARGIN + 8), outline=colour, width=3)
        draw.text((left + 20, MARGIN - 6), text, fill=FAINT, font=font)
        left += round(font.getlength(text)) + 48


def _wrapped(text: str, font: ImageFont.ImageFont, lines: int = 2) -> tuple[str, ...]:
    """The text in at most so many lines as wide as a cell; what does not fit is cut with '…'."""
    words, wrapped = "".join(c if c.isprintable() else " " for c in text).split(), []
    while words and len(wrapped) < lines:
        line = words.pop(0)
        while words and font.getlength(f"{line} {words[0]}") <= CELL:
            line += " " + words.pop(0)
        if words and len(wrapped) + 1 == lines:
            line += " …" if font.getlength(line + " …") <= CELL else "…"
        wrapped.append(_shortened(line, font))
    return tuple(wrapped)


def _shortened(line: str, font: ImageFont.ImageFont) -> str:
    if font.getlength(line) <= CELL:
        return line
    line = line[: CELL // 2]  # no letter is as narrow as that, and measuring a long line is slow
    while font.getlength(line + "…") > CELL:
        line = line[:-1]
    return line.rstrip("… ") + "…"


@lru_cache
def _font(size: int) -> ImageFont.ImageFont:
    """A font of the system that knows more than Latin letters, or else Pillow's own."""
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)
