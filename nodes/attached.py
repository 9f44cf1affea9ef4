"""Which runs a TrainLoRA of this ComfyUI is at now, and the word to all open pages when that begins and ends.

Some seconds pass between the start of a child and its taking the lock of the run folder; here it is known as running from the
beginning.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from ..trainer_core.run_dir import RunDir
from ..trainer_core.runs import FINISHED, RUNNING, summarise

EVENT = "flux_lora.run"
ATTACHED: set[str] = set()  # ids of runs


@contextmanager
def attached(run: RunDir, node_id: str) -> Iterator[None]:
    """While in here, the run is shown as running on that node; as what it has become then, whatever ended it."""
    if run.result_path.exists():
        _tell(run, node_id, FINISHED)
        yield
        return
    ATTACHED.add(run.run_id)
    _tell(run, node_id, RUNNING)
    try:
        yield
    finally:
        ATTACHED.discard(run.run_id)
        _tell(run, node_id, summarise(run).state)


def _tell(run: RunDir, node_id: str, state: str) -> None:
    from server import PromptServer

    PromptServer.instance.send_sync(EVENT, {"node_id": node_id, "run_id": run.run_id, "state": state})
