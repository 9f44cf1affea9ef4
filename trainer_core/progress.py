"""A progress bar on the terminal, drawn from the events like every other view of a run."""

import sys

from tqdm import tqdm

from .events import Event

tqdm.monitor_interval = 0  # no thread that looks after bars: each event draws its own


class ProgressBar:
    """A listener for EventLog: one bar a phase, the loss beside the training bar."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._title = ""

    def __call__(self, event: Event) -> None:
        if event["event"] == "phase" and event["total"]:
            self.show(event["phase"], event["done"], event["total"])
        elif event["event"] == "step":
            self.show("train", event["step"], event["steps"], f"loss {event['loss']:.4f}")
        elif event["event"] == "warning":
            tqdm.write(f"warning: {event['message']}", file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, title: str, done: int, total: int, note: str = "") -> None:
        """This far with what the title says."""
        if self._bar is None or title != self._title:
            self.close()
            self._title = title
            self._bar = tqdm(total=total, initial=done, desc=f"{title:>15}", file=sys.stderr, leave=True)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)
        if done == total:
            self.close()
            self._bar, self._title = None, ""
