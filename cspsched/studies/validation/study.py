"""Measured runs beside simulated ones: the error of every metric and statistic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from cspsched.costs.frontend import Frontend, load_frontend
from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.costs.presets import load_cost
from cspsched.policies.base import make_policy
from cspsched.problem.result import tool_versions
from cspsched.serving import Serving, cost_of, hardware
from cspsched.studies.validation.deployment import ENGINE, merged, require_facts
from cspsched.studies.validation.nouns import METRICS, STATISTICS, Arrivals, Figures, MeasuredRun, Times
from cspsched.studies.validation.serve import Server, serve_requests, serve_stages

VALIDATION_SCHEMA = "cspsched/measured-runs/1"
Listener = Callable[[int, int, str], None]
"""Told how many simulations are done, of how many, and the next one."""
MS_PER_S = 1000


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How runs are simulated; None takes what a run's file says, or the default.

    Attributes
    ----------
    serving
        What differs from the defaults goes before what the files state.
    frontend
        As `load_frontend` takes it; `off` for none, whatever a file says.
    prompts
        Different prompts that clients take in turn; 0 if all are different.
    seeds
        Stages are simulated so often, with arrivals and prompts of their own.
    """

    serving: Serving = field(default_factory=Serving)
    policy: str | None = None
    frontend: str | None = None
    arrivals: Arrivals | None = None
    prompts: int | None = None
    seeds: int = 2


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """A stage, or a run of single requests: measured and simulated.

    Attributes
    ----------
    by_seed
        Simulated figures of each seed; `simulated` is their mean.
    is_stable, was_stable
        Whether latency does not grow, simulated and measured; None where it cannot be told.
    """

    run: str
    stage: str
    load: str
    num_requests: int
    deployment: Deployment
    measured: Figures
    by_seed: tuple[Figures, ...]
    is_stable: bool | None
    was_stable: bool | None
    peers: Mapping[str, Figures]

    @property
    def simulated(self) -> Figures:
        """Means over the seeds."""
        return {
            metric: {
                statistic: fmean(one[metric][statistic] for one in self.by_seed) for statistic in STATISTICS
            }
            for metric in METRICS
            if metric in self.by_seed[0]
        }

    def error(self, metric: str, statistic: str) -> float | None:
        """Simulated / measured - 1; None where either is not known, or was 0."""
        measured = self.measured.get(metric, {}).get(statistic)
        simulated = self.simulated.get(metric, {}).get(statistic)
        return None if not measured or simulated is None else simulated / measured - 1

    def difference_s(self, metric: str, statistic: str) -> float | None:
        """Simulated - measured, in seconds."""
        measured = self.measured.get(metric, {}).get(statistic)
        simulated = self.simulated.get(metric, {}).get(statistic)
        return None if measured is None or simulated is None else simulated - measured

    def to_json(self) -> dict[str, Any]:
        """Everything, with units in the names."""
        return {
            "run": self.run,
            "stage": self.stage,
            "load": self.load,
            "num_requests": self.num_requests,
            "deployment": self.deployment.to_json(),
            "measured_s": self.measured,
            "simulated_s": self.simulated,
            "by_seed_s": list(self.by_seed),
            "errors": _errors(self),
            "is_stable": self.is_stable,
            "was_stable": self.was_stable,
            "peer_errors": self.peers,
        }


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """What was simulated in the place of a server."""

    model: str
    device: str
    parallelism: Parallelism
    cost: str
    policy: str
    frontend: Frontend | None

    @property
    def line(self) -> str:
        """All but the frontend, in a line."""
        parallel = f" ({self.parallelism.title})" if self.parallelism != ONE_GPU else ""
        return f"{self.model} on {self.device}{parallel}, cost model {self.cost}, {self.policy}"

    def to_json(self) -> dict[str, Any]:
        """The same by name."""
        return {
            "model": self.model,
            "device": self.device,
            **self.parallelism.degrees,
            "cost": self.cost,
            "policy": self.policy,
            "frontend": None if self.frontend is None else self.frontend.to_json(),
        }


@dataclass(frozen=True, kw_only=True)
class Validation:
    """All rows, in the order of the files."""

    rows: tuple[RunRow, ...]
    seeds: int

    def errors(self, metric: str, statistic: str) -> list[float]:
        """Errors of the rows where they are known."""
        found = (row.error(metric, statistic) for row in self.rows)
        return [error for error in found if error is not None]

    def summary(self) -> dict[str, dict[str, dict[str, float]]]:
        """By metric and statistic: mean absolute error, largest absolute error, mean error."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for metric in METRICS:
            for statistic in STATISTICS:
                if errors := self.errors(metric, statistic):
                    sizes = [abs(error) for error in errors]
                    figures = {"mean_abs": fmean(sizes), "max_abs": max(sizes), "bias": fmean(errors)}
                    found.setdefault(metric, {})[statistic] = figures
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything, with a schema and units in the names."""
        return {
            "schema": VALIDATION_SCHEMA,
            "versions": tool_versions(),
            "seeds": self.seeds,
            "summary": self.summary(),
            "rows": [row.to_json() for row in self.rows],
        }


def validate_runs(
    runs: Sequence[MeasuredRun], settings: Settings | None = None, listener: Listener = lambda *_: None
) -> Validation:
    """Simulate the deployment of each run under its load, and set the times beside the measured ones.

    Stages get arrivals and prompts as their client draws them, several times over. Single requests come when
    they came. All times are the referee's.

    Raises
    ------
    UsageError, InputError
        If a deployment is not known, has no cost model, or cannot hold the requests.
    """
    settings = settings or Settings()
    servers = [server_of(run, settings) for run in runs]
    seeds = [settings.seeds if run.stages else 1 for run in runs]
    done, total, rows = 0, sum(seeds), []
    for run, (server, deployment), count in zip(runs, servers, seeds, strict=True):
        found: list[list[Times]] = []
        for seed in range(count):
            listener(done, total, f"{run.name}, seed {seed}" if run.stages else run.name)
            times = (
                serve_stages(server, run.stages, seed)
                if run.stages
                else [serve_requests(server, run.requests)]
            )
            found.append(times)
            done += 1
        rows += _rows(run, deployment, found)
    return Validation(rows=tuple(rows), seeds=settings.seeds)


def server_of(run: MeasuredRun, settings: Settings) -> tuple[Server, Deployment]:
    """What is simulated for a run.

    Raises
    ------
    UsageError, InputError
        As `validate_runs`.
    """
    serving = merged(settings.serving, run.serving)
    require_facts(serving, f"{run.file}: run {run.name!r}")
    cost = cost_of(serving)
    wanted = settings.frontend or run.frontend or "off"
    frontend = None if wanted == "off" else load_frontend(wanted, cost)
    policy = make_policy(settings.policy or run.policy or ENGINE)
    model, device, parallel = hardware(serving)
    deployment = Deployment(
        model=model,
        device=device,
        parallelism=parallel,
        cost=load_cost(cost).name,
        policy=policy.label,
        frontend=frontend,
    )
    server = Server(
        serving=replace(serving, cost=cost),
        policy=policy,
        arrivals=settings.arrivals,
        prompts=settings.prompts,
        frontend=frontend,
    )
    return server, deployment


def _rows(run: MeasuredRun, deployment: Deployment, found: list[list[Times]]) -> list[RunRow]:
    """A row for each stage, or one of single requests."""
    if run.times is not None:
        (times,) = found[0]
        rate = len(run.requests) / max(float(run.times.arrival[-1]), 1e-9)
        row = RunRow(
            run=run.name,
            stage="",
            load=f"{rate:.3g}/s",
            num_requests=len(run.requests),
            deployment=deployment,
            measured=run.times.figures(),
            by_seed=(times.figures(),),
            is_stable=times.is_stable,
            was_stable=run.times.is_stable,
            peers=run.peers,
        )
        return [row]
    return [
        RunRow(
            run=run.name,
            stage=stage.name,
            load=stage.load,
            num_requests=stage.num_requests,
            deployment=deployment,
            measured=stage.measured,
            by_seed=tuple(times[number].figures() for times in found),
            is_stable=None if stage.rate_rps is None else all(times[number].is_stable for times in found),
            was_stable=None,
            peers=stage.peers or run.peers,
        )
        for number, stage in enumerate(run.stages)
    ]


def _errors(row: RunRow) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for metric in METRICS:
        for statistic in STATISTICS:
            error = row.error(metric, statistic)
            if error is not None:
                found.setdefault(metric, {})[statistic] = error
    return found
