"""Several processes that train one adapter together: who is which, and the few things that they tell one another.

The samples of an optimiser step are shared out, each process makes the gradients of its own, and the sums of all change every
process's weights in the same way. An adapter is small, so one flat sum a step is all the traffic there is: nothing wraps the
model, and offloading, checkpointing and routes are as with one process. (DistributedDataParallel does the same sum in pieces
while the backward pass runs; `docs/scale.md` counts what that would save.)

A process alone is a group of one, in which every question is answered at once. What concerns the host (wishes, lists, waiting)
goes through gloo, gradients through NCCL where they are on a card. The first process alone writes into the run folder. One that
is killed breaks its connections, which the others meet as `ProcessLost` at their next exchange.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from .errors import JobError

PATIENCE = timedelta(days=7)  # the others wait while the first encodes captions or judges pictures
LAST_WORDS = "last words"


class ProcessLost(JobError):
    """Another process of this run has ended, so this one cannot go on."""


@dataclass(frozen=True)
class Group:
    """This process among those of the run. `in_step`: the base is shared out among them, so that each forward pass needs all of
    them, and none does work that the others do not do, too.

    `host` carries what is in host memory; None where the one kind of connection carries everything.
    """

    rank: int = 0
    count: int = 1
    in_step: bool = False
    host: "dist.ProcessGroup | None" = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def any(self, *wishes: bool) -> tuple[bool, ...]:
        """For each wish, whether any process has it."""
        if self.count == 1:
            return wishes
        told = torch.tensor(wishes, dtype=torch.uint8)
        with self._listening():
            dist.all_reduce(told, dist.ReduceOp.MAX, group=self.host)
        return tuple(map(bool, told.tolist()))

    def tell(self, value: Any) -> Any:
        """The first process's value, for all; plain data."""
        if self.count == 1:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(data)])
        with self._listening():
            dist.broadcast(length, 0, group=self.host)
            told = data if self.is_first else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(told, 0, group=self.host)
        return json.loads(told.numpy().tobytes())

    def wait(self) -> None:
        """Until all are here. For nothing at all gloo waits for nobody, so there is something to ask."""
        self.any(False)

    @contextmanager
    def one_after_the_first(self) -> Iterator[None]:
        """The first process does what is in here before the others do: they find what it has left on the disk."""
        if not self.is_first:
            self.wait()
        yield
        if self.is_first:
            self.wait()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Each becomes the sum of all processes' ones, the same bits in all. They are of one type and on one device."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._listening():
            dist.all_reduce(flat, group=self.host if flat.device.type == "cpu" else None)
        sums = flat.split([tensor.numel() for tensor in tensors])
        torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(sums, tensors, strict=True)])

    def mine(self, number: int) -> range:
        """Which of so many pieces of work this process does: all of them where they go in step."""
        return range(number) if self.in_step else range(self.rank, number, self.count)

    def collect(self, done: Tensor) -> None:
        """Fill in the others' pieces, where each process has filled in its own and left 0 for the rest."""
        if not self.in_step:
            self.add_up([done])

    def check_alike(self, what: str, tensors: Iterable[Tensor]) -> None:
        """JobError where these are not the same bits in all processes."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if self.any(self.tell(digest.hexdigest()) != digest.hexdigest())[0]:
            raise JobError(
                f"the {self.count} processes do not agree in {what}; run folder, cache and model files must be the same for "
                "all (on a disk that all machines share), and so must the versions of torch and the kind of card"
            )

    def leave_word(self, message: str) -> None:
        """Why this process ends, for the first to tell."""
        if self.count > 1 and not self.is_first:
            with suppress(RuntimeError):  # the first has gone before
                _store().set(LAST_WORDS, f"process {self.rank}: {message}")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """In here another process may turn out to be gone."""
        try:
            yield
        except RuntimeError as error:
            raise ProcessLost(self._why_lost()) from error

    def _why_lost(self) -> str:
        with suppress(RuntimeError):
            if self.is_first and _store().check([LAST_WORDS]):
                return _store().get(LAST_WORDS).decode()
        return (
            f"another of the {self.count} processes of this run has ended (what it said last is above, or in its machine's "
            "log); start the run again, and it goes on at the step that was saved"
        )


ALONE = Group()


@contextmanager
def joined(
    rank: int, count: int, *, local_rank: int, device: str, meeting: str = "env://", in_step: bool = False
) -> Iterator[Group]:
    """In here this process is one of `count`, who find each other at `meeting`. `device` is the job's wish; of the cards of
    this machine the process takes number `local_rank`."""
    on_card = device != "cpu" and torch.cuda.is_available()
    if on_card:
        if local_rank >= torch.cuda.device_count():
            raise JobError(
                f"process {rank} wants card {local_rank} of this machine, which has {torch.cuda.device_count()}; start at most "
                "one process a card (training.num_devices, or the launcher's number of processes)"
            )
        torch.cuda.set_device(local_rank)
    backend = "nccl" if on_card and dist.is_nccl_available() else "gloo"
    timeout = {} if backend == "nccl" else {"timeout": PATIENCE}
    try:
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=count, **timeout)
        host = dist.new_group(backend="gloo", timeout=PATIENCE) if backend == "nccl" else None
    except RuntimeError as error:
        raise ProcessLost(f"the {count} processes of this run did not find each other at {meeting}: {error}") from error
    with ExitStack() as leaving:
        leaving.callback(dist.destroy_process_group)
        try:
            yield Group(rank, count, in_step, host)
        except ProcessLost:
            if backend == "nccl":  # to take leave of a process that is gone could take for ever
                leaving.pop_all()
            raise


def _store() -> "dist.Store":
    return dist.distributed_c10d._get_default_store()
