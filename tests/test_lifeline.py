"""The end of standard input is noticed, what comes in before it means nothing, and no read waits on it meanwhile."""

import subprocess
import sys
import time

from support import ROOT

WATCHING = """
import threading
from trainer_core.lifeline import wait_for_the_end
watch = threading.Thread(target=wait_for_the_end, daemon=True)
watch.start()
print("watching", flush=True)
watch.join()
print("ended", flush=True)
"""


def test_the_end_of_standard_input_is_noticed_and_nothing_else_is() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", WATCHING], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "watching\n"
        child.stdin.write("a word that means nothing\n" * 1000)
        child.stdin.flush()
        time.sleep(0.5)
        assert child.poll() is None, "what comes in is no end"
        child.stdin.close()
        assert child.stdout.readline() == "ended\n"
    assert child.returncode == 0
