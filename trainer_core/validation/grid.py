"""A sheet of pictures with labels: a row for each LoRA, a column for each prompt, what was measured under the row's name."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ..writing import write_atomically
from .pictures import INK, PAPER

if TYPE_CHECKING:
    from .clip_score import Score

GAP, MARGIN, LINE = 6, 8, 16  # in pixels
LEAST_EDGE, LABEL_WIDTH = 96, 190
FAINT = (150, 150, 158)


@dataclass(frozen=True)
class Cell:
    """One picture as PNG; `loss` is the held-out loss of its row, where there is one, and `score` what CLIP says of it."""

    label: str
    loss: float | None
    prompt: str
    picture: bytes
    score: "Score | None" = None


def draw_grid(path: Path, rows: Sequence[Sequence[Cell]]) -> None:
    """Write the sheet as PNG. Small pictures are enlarged without smoothing, so that every pixel of theirs is seen."""
    pictures = [[_enlarged(Image.open(io.BytesIO(cell.picture)).convert("RGB")) for cell in row] for row in rows]
    widths = [max(row[column].width for row in pictures) for column in range(len(rows[0]))]
    heights = [max(picture.height for picture in row) for row in pictures]
    font, small = ImageFont.load_default(12), ImageFont.load_default(10)
    head, foot = MARGIN + 3 * LINE, LINE * any(cell.score for row in rows for cell in row)
    across, down = sum(width + GAP for width in widths), sum(height + foot + GAP for height in heights)
    sheet = Image.new("RGB", (LABEL_WIDTH + across + MARGIN, head + down + MARGIN), PAPER)
    draw, x = ImageDraw.Draw(sheet), LABEL_WIDTH
    for cell, width in zip(rows[0], widths, strict=True):
        draw.multiline_text((x, MARGIN), _wrapped(draw, cell.prompt, width, font), fill=INK, font=font, spacing=2)
        x += width + GAP
    best = min((row[0].loss for row in rows[1:] if row[0].loss is not None), default=None)
    y = head
    for row, shown, height in zip(rows, pictures, heights, strict=True):
        draw.text((MARGIN, y), row[0].label, fill=INK, font=font)
        if row[0].loss is not None:
            mark = "  (best)" if row[0].loss == best else ""
            draw.text((MARGIN, y + LINE), f"held-out loss {row[0].loss:.4f}{mark}", fill=FAINT, font=font)
        x = LABEL_WIDTH
        for cell, picture, width in zip(row, shown, widths, strict=True):
            sheet.paste(picture, (x, y))
            if cell.score:
                scores = f"CLIP {cell.score.clip_score:.1f}, likeness {cell.score.likeness:.1f}"
                draw.text((x, y + height), _wrapped(draw, scores, width, small).partition("\n")[0], fill=FAINT, font=small)
            x += width + GAP
        y += height + foot + GAP
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def _enlarged(picture: Image.Image) -> Image.Image:
    times = -(-LEAST_EDGE // min(picture.size))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST) if times > 1 else picture


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """At most three lines of that width."""
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font=font) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines[:3])
