"""What was measured beside what is simulated: open loads, closed loops, single requests, a frontend."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cspsched.costs.frontend import Frontend
from cspsched.errors import InputError, UsageError
from cspsched.policies.base import make_policy
from cspsched.problem.request import Request
from cspsched.serving import Serving
from cspsched.studies.validation import MeasuredRun, Settings, validate_runs
from cspsched.studies.validation.frontend_fit import fit_frontend
from cspsched.studies.validation.load import num_prompts, offsets_ns, prompt_lengths, requests_of
from cspsched.studies.validation.nouns import Arrivals, Lengths, Stage, Times
from cspsched.studies.validation.serve import Server, serve_requests, serve_stages
from cspsched.units import NS_PER_S

SERVING = Serving(model="llama-3.1-8b", device="h100", cost="h100-llama-3.1-8b", max_batch_requests=64)
LENGTHS = Lengths(prompt_mean=100.4, prompt_least=90, prompt_most=110, output=8)
STAGE = Stage(name="0", num_requests=40, lengths=LENGTHS, measured={}, rate_rps=20.0, duration_s=2.0)
CLOSED = replace(STAGE, rate_rps=None, duration_s=None, concurrency=4)
ENGINES = ["vllm", "sarathi:chunk=64", "vllm:async_scheduling=true,enable_prefix_caching=true"]


def server(policy: str = ENGINES[2], frontend: Frontend | None = None) -> Server:
    """A small server."""
    return Server(serving=SERVING, policy=make_policy(policy), frontend=frontend)


def run(*stages: Stage) -> MeasuredRun:
    """A run of a file that is not there."""
    return MeasuredRun(name="a", file=Path("stages.csv"), serving=SERVING, stages=stages)


def in_flight(times: Times) -> int:
    """Most requests that are in flight at once; one that comes as another ends is not beside it."""
    moments = [(end, -1) for end in times.last_token.tolist()] + [(at, 1) for at in times.arrival.tolist()]
    return int(np.cumsum([change for _, change in sorted(moments)]).max())


@pytest.mark.parametrize("policy", ENGINES)
def test_a_closed_loop_keeps_its_number_in_flight(policy: str) -> None:
    """Each request but the first ones comes at the moment at which another has its last token."""
    (times,) = serve_stages(server(policy), [CLOSED], seed=0)

    assert in_flight(times) == 4
    assert (times.arrival[:4] == 0).all()
    assert set(times.arrival[4:].tolist()) <= set(times.last_token.tolist())


def test_a_closed_loop_waits_for_the_frontend() -> None:
    """Client and server are apart by it: the same number is in flight at the client."""
    (plain,) = serve_stages(server(), [CLOSED], seed=0)
    (times,) = serve_stages(server(frontend=Frontend(request_ns=10**9)), [CLOSED], seed=0)

    assert times.arrival[4] >= plain.arrival[4] + 1.0
    assert times.figures()["latency"]["mean"] > 1.0


def test_groups_of_data_parallelism_serve_requests_of_their_own() -> None:
    """Equal requests, two at a time: each group serves one of each pair, as if it were alone."""
    serving = replace(SERVING, data_parallel=2)
    pairs = [
        Request(request_id=f"r{i}", arrival_ns=i // 2 * 10**7, prompt_tokens=500, output_tokens=20)
        for i in range(20)
    ]
    engine = server(ENGINES[0])
    together = serve_requests(replace(engine, serving=serving), pairs)
    alone = serve_requests(engine, pairs[::2])

    assert (together.last_token[::2] == alone.last_token).all()
    assert (together.last_token[1::2] == alone.last_token).all()
    assert (together.arrival == [i // 2 * 0.01 for i in range(20)]).all()


def test_a_group_that_is_busy_gets_no_more() -> None:
    """The one with fewer requests is chosen, whichever came last."""
    long = Request(request_id="long", arrival_ns=0, prompt_tokens=500, output_tokens=900)
    others = [
        Request(request_id=f"r{i}", arrival_ns=(i + 1) * 10**8, prompt_tokens=10, output_tokens=2)
        for i in range(4)
    ]
    times = serve_requests(
        replace(server(ENGINES[0]), serving=replace(SERVING, data_parallel=2)), [long, *others]
    )

    assert times.last_token[0] > times.arrival[-1] + 1
    assert np.ptp((times.last_token - times.arrival)[1:]) < 1e-6


def test_groups_under_stages_are_refused() -> None:
    """A stage is offered to one replica."""
    with pytest.raises(UsageError, match="data_parallel is 2, and stages are offered to one group"):
        serve_stages(replace(server(), serving=replace(SERVING, data_parallel=2)), [STAGE], seed=0)


def test_fewer_requests_than_may_be_in_flight_come_at_once() -> None:
    """A closed loop that is never full."""
    (times,) = serve_stages(server(), [replace(CLOSED, num_requests=3)], seed=0)

    assert times.arrival.tolist() == [0, 0, 0]


def test_stages_follow_each_other_on_one_server() -> None:
    """The second begins when the first has ended, and finds its prompts in the cache."""
    shared = replace(
        STAGE, prompts=5, lengths=replace(LENGTHS, prompt_least=1000, prompt_mean=1000.0, prompt_most=1000)
    )
    cold, warm = serve_stages(server(), [shared, shared], seed=0)

    assert warm.arrival.min() >= cold.last_token.max() + 1.0
    assert warm.figures()["ttft"]["p99"] < cold.figures()["ttft"]["p99"]


@pytest.mark.parametrize("arrivals", list(Arrivals))
def test_requests_come_at_the_rate(arrivals: Arrivals) -> None:
    """Rising; equal gaps are equal, scaled ones end with the stage."""
    stage = replace(STAGE, num_requests=4000, duration_s=200.0)
    times = offsets_ns(stage, arrivals, np.random.default_rng(0))

    assert (np.diff(times) >= 0).all()
    assert times[-1] == pytest.approx(200 * NS_PER_S, rel=0.05)
    if arrivals is Arrivals.SCALED:
        assert times[-1] == 200 * NS_PER_S
    if arrivals is Arrivals.EVEN:
        assert set(np.diff(times).tolist()) == {NS_PER_S // 20}


def test_prompts_have_the_lengths_that_were_measured() -> None:
    """Mean as close as whole tokens are, within the bounds but for the shift."""
    lengths = prompt_lengths(STAGE, 100, np.random.default_rng(0))

    assert lengths.mean() == pytest.approx(LENGTHS.prompt_mean, abs=0.5)
    assert lengths.max() - lengths.min() == 20


def test_a_client_takes_its_prompts_in_turn() -> None:
    """Two of five prompts are the same text to the end, others share the system prompt at most."""
    lengths = replace(LENGTHS, system_prompt=10, system_prompts=2)
    first, *others = requests_of(replace(STAGE, lengths=lengths), 5, "s", np.random.default_rng(0))

    assert first.prefix == others[4].prefix
    assert first.prefix[0] == others[1].prefix[0]
    assert first.prefix[1] != others[1].prefix[1]
    assert sum(tokens for _, tokens in first.prefix) == first.prompt_tokens


@pytest.mark.parametrize(
    ("asked", "stated", "system", "found"),
    [(3, 4, 9, 3), (None, 4, 9, 4), (None, None, 9, 100), (None, None, 0, 0)],
)
def test_prompts_are_asked_for_stated_or_the_clients(
    asked: int | None, stated: int | None, system: int, found: int
) -> None:
    """An option goes before the file, and the file before what inference-perf does."""
    stage = replace(STAGE, prompts=stated, lengths=replace(LENGTHS, system_prompt=system))

    assert num_prompts(stage, asked) == found


def test_a_run_that_was_simulated_has_no_error() -> None:
    """The figures of seed 0, given as measured, come out again; those of other seeds are near."""
    (times,) = serve_stages(server(), [STAGE], seed=0)
    measured = replace(STAGE, measured=times.figures())
    (row,) = validate_runs([run(measured)], Settings(seeds=1)).rows
    (other,) = validate_runs([run(measured)], Settings(seeds=3)).rows

    assert row.error("latency", "p99") == row.error("ttft", "mean") == 0
    assert row.is_stable
    assert 0 < abs(other.error("latency", "mean") or 0) < 0.1
    assert len(other.by_seed) == 3


def test_an_overloaded_server_is_not_stable() -> None:
    """Latency grows with every request."""
    stage = replace(STAGE, num_requests=400, rate_rps=400.0, duration_s=1.0, measured={"ttft": {"mean": 1.0}})
    small = Settings(seeds=1, serving=Serving(max_batch_requests=2))

    assert validate_runs([run(stage)], small).rows[0].is_stable is False


def test_a_frontend_is_added_to_what_a_client_sees() -> None:
    """To TTFT and latency, to each percentile, and not to TPOT."""
    stage = replace(STAGE, measured={"ttft": {"mean": 1.0}})
    (off,) = validate_runs([run(stage)], Settings(seeds=1)).rows
    (on,) = validate_runs([run(stage)], Settings(seeds=1, frontend="7ms")).rows

    for metric, added in (("ttft", 0.007), ("latency", 0.007), ("tpot", 0.0)):
        for statistic in ("mean", "p99"):
            assert on.simulated[metric][statistic] - off.simulated[metric][statistic] == pytest.approx(added)


def test_a_fitted_frontend_is_what_was_put_in() -> None:
    """One constant for two stages, the mean of what their medians were above; from so many requests."""
    cold, warm = serve_stages(server(), [STAGE, STAGE], seed=0)
    stages = [
        replace(STAGE, measured={"ttft": {"p50": times.figures()["ttft"]["p50"] + extra}})
        for times, extra in ((cold, 0.006), (warm, 0.008))
    ]
    fitted = fit_frontend([run(*stages)], Settings(seeds=1, frontend="50ms"), "a test")

    assert fitted.frontend == Frontend(request_ns=7_000_000, source="a test")
    assert fitted.num_requests == 80
    assert [round(left, 6) for _, left in fitted.left_out_s] == [0.006, 0.008]


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"ttft": {"p50": 1e-6}}, "ms before the simulated engine"),
        ({"latency": {"mean": 1.0}}, "no TTFT was"),
    ],
)
def test_no_frontend_is_fitted_where_nothing_is_left(
    measured: dict[str, dict[str, float]], message: str
) -> None:
    """Clients that were quicker than the engine, or told no TTFT."""
    with pytest.raises(InputError, match=message):
        fit_frontend([run(replace(STAGE, measured=measured))], Settings(seeds=1), "a test")


def test_a_deployment_has_a_model_and_a_known_device() -> None:
    """Each is told with the file and the option."""
    stage = replace(STAGE, measured={"ttft": {"mean": 1.0}})
    for serving, message in (
        (Serving(device="h100"), "names no model; give --model"),
        (Serving(model="llama-3.1-8b", device="abacus"), "device is 'abacus', which is none of"),
    ):
        with pytest.raises(InputError, match=message):
            validate_runs([replace(run(stage), serving=serving)])


def test_outputs_may_be_drawn():
    """Evenly between the least and the most; all alike where no least is said."""
    drawn = replace(STAGE, num_requests=400, lengths=replace(LENGTHS, output=80, output_least=64))
    outputs = [one.output_tokens for one in requests_of(drawn, 0, "s", np.random.default_rng(0))]

    assert (min(outputs), max(outputs)) == (64, 80)
    assert {one.output_tokens for one in requests_of(STAGE, 0, "s", np.random.default_rng(0))} == {8}
