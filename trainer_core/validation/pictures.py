"""What people look at instead of reading: the before/after sheet and the loss curve."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..writing import write_atomically

if TYPE_CHECKING:
    from PIL import Image

SMOOTHING = 0.9
MAX_COLUMNS = 12
SEPARATOR, LEAST_LETTERS = 5, 10  # in pixels
PAPER, INK = (24, 24, 28), (220, 220, 225)


def draw_before_after(path: Path, prompts: list[str], before: list[Path], after: list[Path]) -> None:
    """Two rows of pictures, base above and LoRA below, a column a prompt; the first of many prompts."""
    import matplotlib.image as mpimg

    prompts = prompts[:MAX_COLUMNS]

    figure, axes = _figure(rows=2, columns=len(prompts))
    for column, prompt in enumerate(prompts):
        for row, (label, paths) in enumerate((("base", before), ("with LoRA", after))):
            cell = axes[row][column]
            cell.imshow(mpimg.imread(str(paths[column])), interpolation="nearest")
            cell.set_xticks([]), cell.set_yticks([])
            if column == 0:
                cell.set_ylabel(label, fontsize=9)
        axes[0][column].set_title("\n".join(textwrap.wrap(prompt, 22)[:2]), fontsize=7)
    _save(figure, path)


def draw_row(path: Path, labelled: "Sequence[tuple[str, Image.Image]]") -> None:
    """Pictures side by side, each under its label."""
    import io

    from PIL import Image, ImageDraw, ImageFont

    edge = max(picture.height for _, picture in labelled)
    font = ImageFont.load_default(max(LEAST_LETTERS, edge // 40))
    band = round(font.size * 1.6)
    across = sum(picture.width for _, picture in labelled) + SEPARATOR * (len(labelled) - 1)
    sheet = Image.new("RGB", (across, edge + band), PAPER)
    draw, x = ImageDraw.Draw(sheet), 0
    for label, picture in labelled:
        draw.text((x + picture.width / 2, band / 2), label, font=font, fill=INK, anchor="mm")
        sheet.paste(picture, (x, band + (edge - picture.height) // 2))
        x += picture.width + SEPARATOR
    buffer = io.BytesIO()
    sheet.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def draw_loss_curve(path: Path, losses: list[float]) -> None:
    """Loss of each step, and its running mean."""
    figure, axes = _figure(rows=1, columns=1, size=(7, 3.5), layout="none")  # finding one takes as long as drawing
    figure.subplots_adjust(left=0.11, right=0.98, bottom=0.14, top=0.97)
    steps = range(1, len(losses) + 1)
    axes[0][0].plot(steps, losses, linewidth=0.6, alpha=0.4, label="loss of the step")
    axes[0][0].plot(steps, running_mean(losses), linewidth=1.6, label="running mean")
    axes[0][0].set_xlabel("step"), axes[0][0].set_ylabel("loss")
    axes[0][0].ticklabel_format(axis="y", scilimits=(-2, 3))
    axes[0][0].legend(frameon=False)
    _save(figure, path)


def running_mean(losses: list[float]) -> list[float]:
    """Exponential mean with weight 0.9 on the past, corrected for its start."""
    means, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        means.append(mean / (1 - SMOOTHING**number))
    return means


def _figure(rows: int, columns: int, size: tuple[float, float] | None = None, layout: str = "constrained"):
    """A figure without pyplot, so that no window system and no global state is touched."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size or (1.5 * columns + 0.4, 1.7 * rows), layout=layout, dpi=120)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _save(figure, path: Path) -> None:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())
