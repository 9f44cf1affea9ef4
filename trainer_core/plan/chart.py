"""The plan as a picture: a bar for each phase, a line for the memory there is."""

import io
from pathlib import Path

from ..writing import write_atomically
from .phases import GIB
from .plan import Plan

COLOURS = {"host": "#4c78a8", "card": "#f58518"}


def draw_plan(path: Path, plan: Plan) -> None:
    """A PNG. Where there is no card, host memory alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.7 + 0.55 * len(plan.phases)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    kinds = ["host", "card"] if plan.room.card else ["host"]
    height = 0.8 / len(kinds)
    for number, kind in enumerate(kinds):
        places = [row + (number - (len(kinds) - 1) / 2) * height for row in range(len(plan.phases))]
        sizes = [{"host": phase.host, "card": phase.card}[kind] / GIB for phase in plan.phases]
        bars = axes.barh(places, sizes, height=height, color=COLOURS[kind], label=f"{kind} memory")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
        if kind == "host" and any(phase.mapped for phase in plan.phases):
            mapped = [phase.mapped / GIB for phase in plan.phases]
            axes.barh(places, mapped, left=sizes, height=height, color=COLOURS[kind], alpha=0.35, label="of the model's file")
        there = {"host": plan.room.host, "card": plan.room.card}[kind] / GIB
        axes.axvline(there, color=COLOURS[kind], linestyle="--", linewidth=1.2)
        axes.text(there, -0.62, f" {there:.1f} GiB there", color=COLOURS[kind], fontsize=8, va="center", ha="right")
    axes.set_yticks(range(len(plan.phases)), [phase.name for phase in plan.phases])
    axes.invert_yaxis()
    axes.set_xlabel("GiB at the peak of the phase")
    axes.set_title(f"this run {plan.verdict}" if plan.verdict != "tight" else "this run fits, tightly", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_atomically(path, buffer.getvalue())
