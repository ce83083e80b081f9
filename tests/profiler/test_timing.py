"""Timing rules: what is inside a sample, what is flushed, when a point is measured again; without torch."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from cspsched.profiler.sentinel import drift
from cspsched.profiler.timing import CpuTimer, CudaTimer, measure, summarise


class Scripted:
    """A timer that hands out prepared samples."""

    def __init__(self, *tries):
        self.tries = list(tries)

    def samples_us(self, variants, repeats):
        """The next prepared samples."""
        return np.array(self.tries.pop(0), dtype=float)


class Machine:
    """A clock that only calls move: the k-th variant takes so many microseconds."""

    def __init__(self, *costs_us):
        self.now_s, self.calls = 0.0, [0] * len(costs_us)
        self.variants = [lambda k=k, us=us: self.run(k, us) for k, us in enumerate(costs_us)]

    def run(self, k, us):
        """Let time pass."""
        self.calls[k] += 1
        self.now_s += us / 1e6

    def clock(self):
        """Seconds that have passed."""
        return self.now_s


def test_steady_samples_are_taken_at_once():
    """A spread below 5 % needs no second try."""
    sample = measure(Scripted([100, 101, 102, 101, 100]), [])

    assert (sample.median_us, sample.repeat_index, sample.noisy) == (101, 0, False)


def test_the_steadiest_of_three_noisy_tries_is_reported_and_flagged():
    """A spread that stays above 5 % makes the row noisy; the least of three is kept."""
    wide, wider, least = [100, 150, 200], [100, 200, 400], [100, 110, 120]
    sample = measure(Scripted(wide, least, wider), [])

    assert (sample.median_us, sample.repeat_index, sample.noisy) == (110, 1, True)


def test_a_second_try_may_be_steady():
    """Measuring stops as soon as the spread is small."""
    timer = Scripted([100, 150, 200], [100, 100, 100], [1, 1, 1])
    sample = measure(timer, [])

    assert (sample.repeat_index, sample.noisy, len(timer.tries)) == (1, False, 1)


def test_summary_is_that_of_numpy():
    """Median, tenth and ninetieth percentile with linear interpolation, least, interquartile range."""
    sample = summarise(np.arange(1.0, 12.0))

    assert (sample.median_us, sample.p10_us, sample.p90_us, sample.min_us) == (6, 2, 10, 1)
    assert (sample.iqr_us, sample.repeats) == (5, 11)


@pytest.mark.parametrize("us", [1.0, 50.0, 3000.0, 400_000.0])
def test_cpu_samples_are_microseconds_a_call(us):
    """Whatever a call takes, the samples say so; short calls are timed many at once."""
    machine = Machine(us)
    samples = CpuTimer(machine.clock).samples_us(machine.variants, 15)

    assert samples == pytest.approx(us)
    assert 5 <= len(samples) <= 15
    assert machine.calls[0] * us >= 15 * 200 or us > 200


def test_cpu_samples_go_through_all_variants():
    """Copies of weights take turns, so that none of them stays in the cache."""
    machine = Machine(300.0, 300.0, 300.0)
    CpuTimer(machine.clock).samples_us(machine.variants, 15)

    assert max(machine.calls) - min(machine.calls) <= 1
    assert min(machine.calls) >= 5


def test_long_cpu_calls_are_repeated_less():
    """A call of 0.4 s is not made fifteen times."""
    machine = Machine(400_000.0)

    assert len(CpuTimer(machine.clock).samples_us(machine.variants, 15)) == 5


class FakeCuda:
    """Records what would be put on a stream, with a clock of one microsecond for each entry."""

    int8 = "int8"

    def __init__(self):
        self.log = []
        self.ticks = count()
        self.cuda = SimpleNamespace(
            Event=lambda enable_timing: FakeEvent(self),
            Stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None),
            stream=lambda stream: FakeContext(self, "side"),
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.log.append("replay")),
            graph=lambda graph: FakeContext(self, "capture"),
            synchronize=lambda: self.log.append("synchronize"),
        )

    def empty(self, size, dtype, device):
        """The buffer that is flushed."""
        self.flush_bytes = size
        return SimpleNamespace(zero_=lambda: self.log.append("flush"))


class FakeContext:
    """Notes where it begins and ends."""

    def __init__(self, torch, name):
        self.log, self.name = torch.log, name

    def __enter__(self):
        self.log.append(f"{self.name} begins")

    def __exit__(self, *error):
        self.log.append(f"{self.name} ends")


class FakeEvent:
    """An event that is 6 ms after the one before it."""

    def __init__(self, torch):
        self.torch = torch

    def record(self):
        """Note the event."""
        self.torch.log.append("event")

    def elapsed_time(self, end):
        """Milliseconds."""
        return 6.0


def test_gpu_replays_lie_between_two_events_and_the_flush_outside():
    """Each replay: flush L2, event, graph, event; nothing waits in between."""
    torch = FakeCuda()
    samples = CudaTimer(torch).samples_us([lambda: torch.log.append("call")] * 3, repeats=4)
    capture = torch.log.index("capture begins")

    assert torch.log[capture : capture + 5] == ["capture begins", "call", "call", "call", "capture ends"]
    assert torch.log[capture + 6 :] == ["flush", "event", "replay", "event"] * 4 + ["synchronize"]
    assert samples.tolist() == [2000.0] * 4


def test_gpu_calls_are_warmed_up_on_a_side_stream():
    """Three rounds before the capture, as CUDA graphs demand."""
    torch = FakeCuda()
    CudaTimer(torch).samples_us([lambda: torch.log.append("call")], repeats=1)

    assert torch.log[:5] == ["side begins", "call", "call", "call", "side ends"]


def test_a_capture_that_fails_leaves_nothing_behind():
    """The stream from before is the current one again, and random numbers have a generator that works."""
    torch = FakeCuda()
    graphs, states = [], []
    before = SimpleNamespace(wait_stream=lambda other: None)
    torch.Generator = lambda device: SimpleNamespace(graphsafe_get_state=lambda: "fresh")
    torch.cuda.current_stream = lambda: before
    torch.cuda.set_stream = graphs.append
    torch.cuda.current_device = lambda: 0
    torch.cuda.default_generators = [SimpleNamespace(graphsafe_set_state=states.append)]

    class Capture(FakeContext):
        def __exit__(self, *error):
            raise RuntimeError("operation failed due to a previous error during capture")

    torch.cuda.graph = lambda graph: Capture(torch, "capture")

    def waits():
        torch.log.append("call")
        if "capture begins" in torch.log:
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        CudaTimer(torch).samples_us([waits], repeats=1)

    assert graphs == [before]
    assert states == ["fresh"]
    assert "replay" not in torch.log


def test_flush_is_larger_than_any_l2():
    """256 MiB are written between replays."""
    torch = FakeCuda()
    CudaTimer(torch)

    assert torch.flush_bytes == 2**28


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ([100.0], 0.0),
        ([100.0, 100.0, 103.0], 0.03),
        ([100.0, 100.0, 90.0, 100.0], 0.1),
        ([90.0, 100.0, 100.0, 100.0], 0),
    ],
)
def test_drift_is_of_the_two_sentinels_around_an_interval(times, expected):
    """The distance of either from the median of the series; older ones do not count."""
    assert drift(times) == pytest.approx(expected)
