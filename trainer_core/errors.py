"""The two ways in which a run ends early on purpose; anything else that is raised is our own bug."""

from pathlib import Path

LONGEST = 8000  # characters of a message; what it quotes may be a stranger's, and as long as a book


class JobError(ValueError):
    """Something that the user can mend. The message names what, the value found, and the mend."""

    def __init__(self, message: str):
        super().__init__(message if len(message) <= LONGEST else f"{message[:LONGEST]}...")


class StopRequested(Exception):
    """The control file, a signal or the vanished parent asked to stop; the state has been saved at `step`."""

    def __init__(self, step: int, run_dir: Path):
        super().__init__(f"stopped at step {step}")
        self.step = step
        self.run_dir = run_dir
