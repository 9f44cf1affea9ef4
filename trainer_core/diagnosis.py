"""Why a training process died, in plain words with the mend, from its exit code and the last lines that it printed.

What a process says itself comes first: literal patterns in its last lines, the newest line that fits. One that was killed by
the system says nothing, so there the exit code does, as where no line fits: POSIX's signals and Windows' status codes. No torch
here: ComfyUI's side asks.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

EXIT_NOTE = "the process ended with exit code"
LINES = 60  # at the end of a log, in which the reason is looked for
TAIL_BYTES = 64 << 10
LINE_CHARACTERS = 1000
SIGKILL = -9
WINDOWS_STATUS = 1 << 32  # Windows' status codes are given as they are, or as negative numbers

SMALLER = (
    "choose a lower resolution, base_model_precision nf4-bnb or a larger blocks_to_swap; the Training Plan node tells what fits"
)
ROOMIER = "close other programs, allow more swap, or choose fewer bits for base and T5; the Training Plan node tells what fits"
INSTALL = "install the pack's requirements.txt with ComfyUI's own Python, and restart ComfyUI"
DRIVER = "restart the computer; if it comes back, update the graphics driver and take away any overclocking"


class Cause(NamedTuple):
    """What happened, and what helps."""

    what: str
    mend: str


NO_HOST_MEMORY = Cause("the computer's memory (RAM) ran out", ROOMIER)
KILLED = Cause("the system or somebody killed the process, most often because the computer's memory (RAM) ran out", ROOMIER)
CRASHED = Cause("a library crashed in its compiled code", f"queue it again to go on; if it comes back, {DRIVER}")

SAID: tuple[tuple[str, Cause], ...] = (
    (
        r"(CUDA|HIP) out of memory|torch\.OutOfMemoryError|CUDA error: out of memory|CU(BLAS|DNN)_STATUS_ALLOC_FAILED",
        Cause("the card's memory ran out", SMALLER),
    ),
    (
        r"^MemoryError|DefaultCPUAllocator: (can't|not enough)|Cannot allocate memory|std::bad_alloc|os error 1455"
        r"|paging file is too small|numpy.*Unable to allocate",
        NO_HOST_MEMORY,
    ),
    (
        r"No space left on device|not enough space on the disk|Disk quota exceeded|\[WinError 112\]",
        Cause("the disk is full", "make room on the disk of ComfyUI's output folder, and queue it again"),
    ),
    (r"ModuleNotFoundError: No module named '(?P<name>[\w.]+)'", Cause("the Python package {name} is missing", INSTALL)),
    (
        r"^ImportError: |DLL load failed|undefined symbol",
        Cause("two Python packages do not fit together, or one is damaged", INSTALL),
    ),
    (
        r"no kernel image is available|not compatible with the current PyTorch installation",
        Cause("this build of torch does not know the card", "install the torch build that is made for it"),
    ),
    (
        r"found no NVIDIA driver|CUDA driver (version is insufficient|initialization failed)|No CUDA GPUs are available",
        Cause("torch does not reach the card", "install or update the graphics driver, and restart the computer"),
    ),
    (
        r"illegal memory access|unspecified launch failure|device-side assert|misaligned address|CUDA error: unknown error",
        Cause("the card reported a fault", f"queue it again to go on; if it comes back, {DRIVER}"),
    ),
    (
        r"Too many open files",
        Cause("the system allows the process no more open files", "raise the limit with `ulimit -n 4096`"),
    ),
    (
        r"PermissionError: |\[WinError 5\]",
        Cause("a file or folder may not be read or written", "give ComfyUI the right to it; the last line names it"),
    ),
    (r"Input/output error|\[WinError 23\]", Cause("the disk reported a fault", "check the disk; another one may be needed")),
)
EXIT_CODES: dict[int, Cause] = {
    -4: Cause("a library uses instructions that this processor lacks", "install a torch build that is made for it"),
    -6: CRASHED,
    -7: Cause(
        "a file that was in use was cut off or its disk failed", "check the disk and the model files, and queue it again"
    ),
    SIGKILL: KILLED,
    -11: CRASHED,
    -15: Cause("the process was asked to end from outside, before it could save", "queue it again to go on"),
    0xC0000005: CRASHED,  # access violation
    0xC0000017: NO_HOST_MEMORY,
    0xC00000FD: CRASHED,  # stack overflow
    0xC000012D: NO_HOST_MEMORY,  # the commit limit: RAM and page file together
    0xC0000135: Cause("a system library (DLL) is missing", "install Microsoft's Visual C++ Redistributable, and restart"),
    0xC000013A: Cause("the console window was closed, or Ctrl-C pressed", "queue it again to go on"),
    0xC0000409: CRASHED,  # an abort
}


def diagnose(code: int | None, lines: Iterable[str]) -> str:
    """What happened and what helps, by the exit code (None where nobody knows it) and the last lines; '' where none tells."""
    number = None if code is None else _signal_or_status(code)
    if number == SIGKILL:
        return _sentence(KILLED)
    for line in reversed(list(lines)[-LINES:]):
        for pattern, cause in SAID:
            if found := re.search(pattern, line[:LINE_CHARACTERS]):
                return _sentence(Cause(cause.what.format(**found.groupdict()), cause.mend))
    return _sentence(EXIT_CODES[number]) if number in EXIT_CODES else ""


def _signal_or_status(code: int) -> int:
    """The exit code as EXIT_CODES has it: shells add 128 to a signal, and a status code may come as a negative number."""
    return code + WINDOWS_STATUS if code < -255 else 128 - code if 128 < code < 192 else code


def last_lines(path: Path, count: int = LINES) -> list[str]:
    """The last lines of a log, at most so many; none where there is no file. Reads the disk."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        text = file.read().decode("utf-8", "replace")
    return text.splitlines()[-count:]


def note_exit(path: Path, code: int) -> None:
    """Put the exit code behind the last line of a log, for those who read it later. Writes the disk."""
    with path.open("ab") as file:
        file.write(f"\n{EXIT_NOTE} {code}\n".encode())


def noted_exit(lines: Sequence[str]) -> int | None:
    """The exit code that stands behind the last line, or None."""
    note, _, code = lines[-1].rpartition(" ") if lines else ("", "", "")
    return int(code) if note == EXIT_NOTE else None


def _sentence(cause: Cause) -> str:
    return f"{cause.what}. What helps: {cause.mend}."
