"""Standard input as a lifeline: its end says that whoever started this process has died, or wishes it to stop.

It is looked at now and then, and never read with patience. On Windows a read that waits holds the pipe, and a library that is
loaded meanwhile and asks what standard input is, as scipy's OpenBLAS does, waits with it for ever (numpy/numpy#24290,
python/cpython#78961).
"""

import os
import sys
import time

STDIN = 0
LOOK_SECONDS = 0.2
MOST_READ = 4096  # bytes at a time of what comes in, which means nothing

if sys.platform == "win32":
    import ctypes
    import msvcrt
    from ctypes import wintypes

    BROKEN_PIPE = 109
    _kernel = ctypes.WinDLL("kernel32", use_last_error=True)

    def has_ended() -> bool:
        """Whether nobody holds the other end any more. False of what is no pipe."""
        handle, count = wintypes.HANDLE(msvcrt.get_osfhandle(STDIN)), wintypes.DWORD()
        if not _kernel.PeekNamedPipe(handle, None, 0, None, ctypes.byref(count), None):
            return ctypes.get_last_error() == BROKEN_PIPE
        return count.value > 0 and not os.read(STDIN, min(count.value, MOST_READ))

else:
    import select

    def has_ended() -> bool:
        """Whether nobody holds the other end any more."""
        readable, _, _ = select.select([STDIN], [], [], 0)
        return bool(readable) and not os.read(STDIN, MOST_READ)


def wait_for_the_end() -> None:
    """Until standard input has ended."""
    while not has_ended():
        time.sleep(LOOK_SECONDS)
