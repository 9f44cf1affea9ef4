"""What a run has measured so far, and the report that each log interval makes of it.

A history belongs to the state of the run: it is saved with each checkpoint and restored with it, half-filled interval
included, so a resumed run reports the numbers of the uninterrupted one. What the clock says (speed, waiting, memory) is of
course measured anew.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .step import StepRecord

NUM_BANDS = 5  # equal parts of sigma from 0 to 1


@dataclass(frozen=True)
class Evaluation:
    """The mean loss on the held-out samples at one step, and of each dataset by noise level: {id: {'0.125': loss}}."""

    step: int
    loss: float
    by_dataset: dict[str, dict[str, float]]


@dataclass(frozen=True)
class PictureScore:
    """What CLIP said of one picture (`validation/clip_score.py`); `picture` is its folder and name."""

    step: int
    picture: str
    prompt: str
    clip_score: float
    likeness: float


@dataclass
class Interval:
    """Sums over the steps since the last report."""

    steps: int = 0
    loss: float = 0.0
    grad_norm: float = 0.0
    band_loss: list[float] = field(default_factory=lambda: [0.0] * NUM_BANDS)
    band_samples: list[int] = field(default_factory=lambda: [0] * NUM_BANDS)
    tokens: int = 0
    dropped: list[int] = field(default_factory=list)
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass
class RouteTotal:
    """What one TREAD route did over the run: its steps, the image tokens it left out of how many, and the time they took."""

    steps: int = 0
    tokens: int = 0
    dropped: int = 0
    seconds: float = 0.0


@dataclass
class History:
    """`losses` has one entry a step done, so its length is the step. `thumbnail` is of the newest pictures that were due;
    `started` is the day that the run began on, which its LoRA files tell (modelspec.py)."""

    losses: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    interval: Interval = field(default_factory=Interval)
    routes: list[RouteTotal] = field(default_factory=list)
    scores: list[PictureScore] = field(default_factory=list)
    thumbnail: str = ""
    started: str = ""

    @property
    def step(self) -> int:
        return len(self.losses)

    @property
    def best(self) -> Evaluation | None:
        """The lowest evaluation of a trained adapter; the earliest of equals."""
        return min((e for e in self.evaluations if e.step), key=lambda evaluation: evaluation.loss, default=None)

    def add(self, record: StepRecord, seconds: float, data_seconds: float) -> None:
        """One more step done, which took so long, and in it waited so long for its batches."""
        self.losses.append(record.loss)
        sums = self.interval
        sums.steps += 1
        sums.loss += record.loss
        sums.grad_norm += record.grad_norm
        for sigma, loss in zip(record.sigmas, record.losses, strict=True):
            band = min(int(sigma * NUM_BANDS), NUM_BANDS - 1)
            sums.band_loss[band] += loss
            sums.band_samples[band] += 1
        sums.tokens += record.tokens
        sums.dropped = [a + b for a, b in zip(sums.dropped or [0] * len(record.dropped), record.dropped, strict=True)]
        sums.seconds += seconds
        sums.data_seconds += data_seconds
        self.routes = self.routes or [RouteTotal() for _ in record.dropped]
        for total, dropped in zip(self.routes, record.dropped, strict=True):
            if dropped:
                total.steps, total.tokens = total.steps + 1, total.tokens + record.tokens
                total.dropped, total.seconds = total.dropped + dropped, total.seconds + seconds

    def report(self, *, anew: bool = True) -> dict[str, Any]:
        """The means of the interval, which begins anew, or is only looked at; the fields of `metrics` but for memory."""
        sums = self.interval
        if anew:
            self.interval = Interval()
        bands = zip(sums.band_loss, sums.band_samples, strict=True)
        return {
            "step": self.step,
            "loss": sums.loss / sums.steps,
            "loss_by_sigma": [loss / count if count else None for loss, count in bands],
            "grad_norm": sums.grad_norm / sums.steps,
            "steps_per_second": round(sums.steps / sums.seconds, 4),
            "data_wait_share": round(sums.data_seconds / sums.seconds, 4),
            "dropped_tokens": sums.dropped,
            "tokens": sums.tokens,
        }

    def route_report(self) -> list[dict[str, Any]]:
        """For each route: steps that took it, its share of tokens left out, seconds a step with it and seconds of all steps."""
        return [
            {
                "steps": total.steps,
                "dropped_tokens": total.dropped,
                "dropped_share": round(total.dropped / total.tokens, 4) if total.tokens else 0.0,
                "seconds_per_step": round(total.seconds / total.steps, 4) if total.steps else None,
            }
            for total in self.routes
        ]

    def to_json(self) -> dict[str, Any]:
        """All but the losses, of which there are as many as steps: a checkpoint keeps them in a file of their own."""
        return {name: value for name, value in asdict(replace(self, losses=[])).items() if name != "losses"}

    @classmethod
    def from_json(cls, data: dict[str, Any], losses: list[float]) -> "History":
        return cls(
            losses=losses,
            evaluations=[Evaluation(**entry) for entry in data["evaluations"]],
            interval=Interval(**data["interval"]),
            routes=[RouteTotal(**entry) for entry in data["routes"]],
            scores=[PictureScore(**entry) for entry in data["scores"]],
            thumbnail=data.get("thumbnail", ""),  # runs of earlier versions have neither
            started=data.get("started", ""),
        )
