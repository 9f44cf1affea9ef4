"""A thread that has no memory to begin with is refused in words, and not waited for."""

import subprocess
import sys

import pytest

from tests.support import ROOT

WITHOUT_MEMORY = """
import resource, time
from trainer_core.data.threads import Threads
with Threads(1) as threads:
    held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held, held))
    try:
        threads.submit(time.sleep, 0)
    except MemoryError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_thread_without_room_is_refused_where_it_would_begin():
    words = [sys.executable, "-c", WITHOUT_MEMORY]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
    assert told == "there are no 32 MB of memory for another thread; close other programs that use it\n"
