"""Threads that read beside the computation, and leave it the processor's cores.

A thread that calls torch gets a team of OpenMP threads of its own, as many as there are cores, and a team spins for a while
after each operation. Beside a model that computes on the CPU, two teams take the cores from each other: on two cores a step of
pico took 2.25 times as long as a loop without such a thread, more than on one core alone. So each of these threads works alone.
"""

import torch

from .threads import Threads


def threads_aside(count: int, name: str) -> Threads:
    """A pool of so many. The calling thread keeps the number of cores that it has."""
    torch.get_num_threads()  # settles it for the calling thread, before others say what new threads get
    return Threads(count, thread_name_prefix=name, initializer=torch.set_num_threads, initargs=(1,))
