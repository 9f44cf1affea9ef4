"""Tells when each optimizer step of a process ended, and how much memory the process had taken by then. For `peers.py`.

A copy of this file is laid beside a side as `sitecustomize.py`, which Python imports at its start, in the processes that a side
starts, too. It knows nothing but torch, so that what is measured stays as it was installed: torch calls whoever asks after each
step of any optimizer. Torch is waited for, not imported, or its time would be taken from the side's own start.

Each step is a line of JSON in $PEER_STEPS: `at` (seconds of the clock that all processes of a machine share), `peak_bytes` (the
most that was resident, by the kernel), `size` (numbers that the optimizer trains: a side may try a small one before its own),
`torch`, `threads`. After $PEER_COUNT of one optimizer the process ends at once: how a side saves is not what is compared.

SimpleTuner pins memory without asking whether there is a card to pin it for, which torch refuses where there is none; with
$PEER_UNPINNED memory is left as it is, or there would be nothing to measure on such a machine.
"""

import json
import os
import sys
import threading
import time
from collections import Counter

PAUSE = 0.02  # seconds


def wait_for_torch() -> None:
    while not hasattr(sys.modules.get("torch.optim.optimizer"), "register_optimizer_step_post_hook"):
        time.sleep(PAUSE)
    sys.modules["torch.optim.optimizer"].register_optimizer_step_post_hook(report)
    if "PEER_UNPINNED" in os.environ:
        while not hasattr(sys.modules["torch"], "Tensor"):
            time.sleep(PAUSE)
        sys.modules["torch"].Tensor.pin_memory = lambda tensor, device=None: tensor


def report(optimizer: object, arguments: object, keywords: object) -> None:
    at = time.monotonic()
    torch = sys.modules["torch"]
    size = sum(parameter.numel() for group in optimizer.param_groups for parameter in group["params"])
    step = {"at": at, "peak_bytes": peak_bytes(), "size": size, "torch": torch.__version__, "threads": torch.get_num_threads()}
    with open(os.environ["PEER_STEPS"], "a", encoding="utf-8") as file:
        file.write(json.dumps(step) + "\n")
    counted[size] += 1
    if counted[size] == int(os.environ["PEER_COUNT"]):
        os._exit(0)


def peak_bytes() -> int:
    """By the kernel, Linux only. Not from `resource`: what that tells begins with what the parent held."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


counted: Counter[int] = Counter()
if "PEER_STEPS" in os.environ:
    threading.Thread(target=wait_for_torch, daemon=True).start()
