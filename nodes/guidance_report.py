"""What AdaptiveGuider did in one sampling, as text: the predictions it saved, then a line a step.

A step is one of the schedule; some samplers evaluate the model several times in it. Without CFG an evaluation takes one
prediction instead of two, which is what is saved.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

NOT_BEGUN, ON, ENDED = "not begun", "on", "ended"


class Evaluation(NamedTuple):
    """One call of the model at `sigma`, in this step of the schedule, from 1 on. `similarity` only where it was looked at.
    `num_predictions` is 2 with the unconditional one."""

    step: int
    sigma: float
    cfg: str
    num_predictions: int
    similarity: float | None


def summary(evaluations: Sequence[Evaluation]) -> str:
    """One line: how often CFG was on, and what that saved."""
    guided, most = sum(evaluation.cfg == ON for evaluation in evaluations), 2 * len(evaluations)
    saved = most - sum(evaluation.num_predictions for evaluation in evaluations)
    share = saved / most if most else 0.0
    return f"CFG on in {guided} of {len(evaluations)} evaluations, {saved} of {most} predictions saved ({share:.0%})"


def describe(evaluations: Sequence[Evaluation]) -> str:
    """The summary, and what was done in each step."""
    lines = [summary(evaluations)]
    for step, group in groupby(evaluations, key=lambda evaluation: evaluation.step):
        lines.append(_step(step, list(group)))
    return "\n".join(lines)


def _step(step: int, evaluations: Sequence[Evaluation]) -> str:
    guided = sum(evaluation.cfg == ON for evaluation in evaluations)
    often = f" in {guided} of {len(evaluations)}" if 0 < guided < len(evaluations) else ""
    what = f"CFG{often}" if guided else "no CFG yet" if evaluations[0].cfg == NOT_BEGUN else "CFG has ended"
    seen = [evaluation.similarity for evaluation in evaluations if evaluation.similarity is not None]
    similarity = f"  similarity {max(seen):.4f}" if seen else ""
    return f"step {step:>3}  sigma {evaluations[0].sigma:.3f}  {what}{similarity}"
