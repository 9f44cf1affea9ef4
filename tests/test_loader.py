"""Reading ahead: what is given is what would have been read, the thread is bounded, follows, fails loudly and ends."""

import random
import threading
import time
import traceback

import pytest
import torch

from support import encoded, job_data, run_in_process
from trainer_core.data.batches import Batch, BatchPlan
from trainer_core.data.loader import Loader
from trainer_core.errors import JobError, StopRequested
from trainer_core.job_file import parse_job
from trainer_core.setup import prepare


class Reader:
    """Reads a batch whose name is its number, and notes it; waits while it is held."""

    def __init__(self):
        self.read: list[int] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, number: int) -> Batch:
        self.go.wait(10)
        self.read.append(number)
        if number == 13:
            raise JobError("batch 13 cannot be read")
        empty = torch.empty(0)
        return Batch(empty, empty, empty, empty, (str(number),))

    def settled(self, count: int) -> list[int]:
        """What was read, once so many are; then a moment more, for one too many."""
        deadline = time.monotonic() + 10
        while len(self.read) < count and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.02)
        return self.read


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_few_batches_are_read_before_they_are_asked_for_and_none_beyond_the_end():
    reader = Reader()
    with Loader(reader, range(2, 9), ahead=3) as loader:
        assert reader.settled(3) == [2, 3, 4]
        assert loader.take(2).names == ("2",)
        assert reader.settled(4) == [2, 3, 4, 5]
        assert [loader.take(number).names for number in range(3, 9)] == [(str(number),) for number in range(3, 9)]
        assert reader.settled(7) == [2, 3, 4, 5, 6, 7, 8]


def test_after_a_jump_it_follows_from_there():
    reader = Reader()
    with Loader(reader, range(12), ahead=3) as loader:
        for number in (0, 1, 2, 1, 8, 3, 3, 11, 0):
            assert loader.take(number).names == (str(number),)
        reader.read.clear()
        assert loader.take(6).names == ("6",) and reader.settled(4)[-4:] == [6, 7, 8, 9]
        assert loader.take(7).names == ("7",) and reader.settled(5)[-5:] == [6, 7, 8, 9, 10], "none is read twice"
        assert loader.take(20).names == ("20",), "what looks beyond the end gets it, but nothing after it"
        assert reader.settled(6)[-1] == 20


def test_any_sequence_gives_what_the_plan_gives(pictures, cache):
    setup = prepare(parse_job(job_data(pictures)))
    plan = BatchPlan(setup.samples, encoded(setup.samples, cache), batch_size=2, caption_dropout=0.3, seed=0)
    drawn, number = random.Random(0), 0
    with Loader(plan.batch, range(30), ahead=4) as loader:
        for _ in range(60):
            number = number + 1 if drawn.random() < 0.7 else drawn.randrange(30)
            given, expected = loader.take(number), plan.batch(number)
            assert given.names == expected.names
            assert torch.equal(given.latent_BCHW, expected.latent_BCHW) and torch.equal(given.text_BLD, expected.text_BLD)


def test_an_error_is_raised_where_its_batch_is_asked_for_with_the_traceback_of_the_thread():
    with Loader(Reader(), range(10, 20), ahead=5) as loader:
        assert [loader.take(number).names for number in (10, 11, 12)] == [("10",), ("11",), ("12",)]
        with pytest.raises(JobError, match="batch 13 cannot be read") as caught:
            loader.take(13)
        assert "in __call__" in "".join(traceback.format_exception(caught.value))
        assert loader.take(14).names == ("14",)


def test_the_thread_ends_with_the_block_whatever_happens_in_it():
    reader = Reader()
    with pytest.raises(KeyError), Loader(reader, range(1000), ahead=100) as loader:
        loader.take(0)
        reader.go.clear()
        threading.Timer(0.05, reader.go.set).start()
        began = time.monotonic()
        raise KeyError
    assert threads() == [] and time.monotonic() - began < 5
    assert len(reader.read) <= 101 and reader.read == list(range(len(reader.read)))


def test_waiting_is_measured_and_what_is_there_is_not_waited_for():
    reader = Reader()
    with Loader(reader, range(10), ahead=3) as loader:
        reader.settled(3)
        loader.take(0)
        assert loader.seconds_waited < 0.05
        reader.go.clear()
        threading.Timer(0.1, reader.go.set).start()
        loader.take(8)
        assert 0.09 < loader.seconds_waited < 5


def test_a_stopped_run_leaves_no_thread(tmp_path, pictures, cache):
    with pytest.raises(StopRequested):
        run_in_process(parse_job(job_data(pictures)), tmp_path, cache, stop_before=2)
    assert threads() == []


def test_the_thread_takes_no_core_from_the_computation():
    own = torch.get_num_threads()
    torch.set_num_threads(2)  # as on any machine; the suite itself runs with one
    try:
        with Loader(lambda number: torch.get_num_threads(), range(3), ahead=2) as loader:
            assert [loader.take(number) for number in range(3)] == [1, 1, 1]
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(own)
