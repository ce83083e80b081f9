"""Small traces on which a policy is provably far from optimal: a search, with the exact solver as judge.

A trace is scored by the policy's value over that of the best of some list schedules. The optimum is no higher
than those, so the score is a proven lower end of the excess. The best traces go to the exact solver, which
finds how large the excess is. Lengths are whole tokens, arrivals whole ticks, the time of the smallest batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from cspsched.errors import PolicyCrashError, PolicyError, UsageError
from cspsched.exact.heuristics.first_schedules import first_schedules
from cspsched.exact.heuristics.list_schedule import share
from cspsched.exact.solver import solve_exactly
from cspsched.exact.watch import SearchLimits
from cspsched.improve.rivals import Rival, run_rivals
from cspsched.problem.excess import Excess
from cspsched.problem.instance import Instance
from cspsched.problem.linear_form import read_objectives
from cspsched.problem.objectives import AnyObjective
from cspsched.problem.request import Request
from cspsched.problem.result import Result, StopReason, tool_versions, unit_of
from cspsched.referee.metrics import measure
from cspsched.units import percent

ADVERSARY_SCHEMA = "cspsched/adversary/1"
TRIALS = 300
"""Traces that are scored between two proofs."""
PATIENCE = 100
"""Trials without a better trace after which the search begins anew."""
TOLERANCE = 0.03
"""Excess by which a trace may be worse than the one before and still be gone on from."""
PROOF_S = 30.0
"""Longest proof of one trace."""
PROOF_WORK_S = 1.0
"""The same without a clock, in the exact solver's own units."""


class Shape(NamedTuple):
    """One request of a trace."""

    arrival_ticks: int
    prompt_tokens: int
    output_tokens: int


Draft = tuple[Shape, ...]
"""Requests in the order of their arrival; the first comes at 0."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What traces are searched: so many requests, each value up to a largest one."""

    num_requests: int = 5
    prompt_tokens: int = 8
    output_tokens: int = 8
    arrival_ticks: int = 12


@dataclass(frozen=True, kw_only=True)
class AdversaryLimits:
    """When the search stops, whatever comes first.

    Attributes
    ----------
    time_limit_s
        Seconds of all. None: trials and the exact solver's work are counted, and the result repeats.
    trials
        Traces that are scored; None: no limit but the clock.
    seed, num_workers
        Of search and solver; threads of the exact solver, with a clock only.
    """

    time_limit_s: float | None = 60.0
    trials: int | None = None
    seed: int = 0
    num_workers: int = 1

    def __post_init__(self) -> None:
        if self.time_limit_s is None and self.trials is None:
            raise UsageError("a search without time limit and without a number of trials never ends")

    def proof(self, left_s: float) -> SearchLimits:
        """Limits of one proof."""
        if self.time_limit_s is None:
            return SearchLimits(time_limit_s=PROOF_WORK_S, num_workers=1, seed=self.seed, deterministic=True)
        limit_s = min(PROOF_S, max(0.0, left_s))
        return SearchLimits(time_limit_s=limit_s, num_workers=self.num_workers, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class AdversaryTask:
    """A policy, and where it is to be embarrassed.

    Attributes
    ----------
    stage
        Limits, switches and cost model; its requests do not count.
    objective
        A text such as `latency`; mixtures mean something only for given requests.
    """

    policy: str
    stage: Instance
    objective: str = "latency"
    bounds: Bounds = field(default_factory=Bounds)
    limits: AdversaryLimits = field(default_factory=AdversaryLimits)

    @property
    def tick_ns(self) -> int:
        """Time of a batch of one token: the unit of arrivals."""
        smallest = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)
        return max(1, self.stage.cost.batch_time_ns(share(smallest, 0)))

    def instance(self, draft: Draft) -> Instance:
        """The instance of a draft."""
        requests = tuple(
            Request(
                request_id=f"r{i}",
                arrival_ns=shape.arrival_ticks * self.tick_ns,
                prompt_tokens=shape.prompt_tokens,
                output_tokens=shape.output_tokens,
            )
            for i, shape in enumerate(draft)
        )
        return replace(self.stage, requests=requests)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adversary:
    """A trace, what a policy makes of it, and what is proven of its optimum.

    Attributes
    ----------
    rival
        The policy's run.
    result
        Of the exact solver, on the instance.
    """

    rival: Rival
    result: Result

    @property
    def excess(self) -> Excess:
        """How far the policy is above the optimum."""
        best_ns, bound_ns = self.result.primal_ns, self.result.dual_ns
        assert best_ns is not None
        assert bound_ns is not None
        return Excess.of(self.rival.value_ns, best_ns=best_ns, bound_ns=bound_ns)

    @property
    def is_proven(self) -> bool:
        """Whether the optimum is known, up to rounding."""
        return self.result.status.is_optimal

    @property
    def rank(self) -> tuple[bool, float]:
        """Those whose optimum is known first, then by what is proven at least."""
        return self.is_proven, self.excess.at_least or 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class AdversarySearch:
    """The worst trace that was found.

    Attributes
    ----------
    worst
        None if no trace was scored that the policy can serve, or Ctrl-C came before the first proof.
    trials, proofs
        Traces that were scored, and those that went to the exact solver.
    """

    task: AdversaryTask
    objective: AnyObjective
    worst: Adversary | None
    trials: int
    proofs: int
    stop_reason: StopReason

    def to_json(self) -> dict[str, Any]:
        """Everything but the schedules, with a schema version and units in the names."""
        worst, count = self.worst, self.task.bounds.num_requests
        data: dict[str, Any] = {
            "schema": ADVERSARY_SCHEMA,
            "policy": self.task.policy,
            "objective": self.objective.value,
            "unit": unit_of(self.objective),
            "num_requests": count,
            "seed": self.task.limits.seed,
            "repeats": self.task.limits.time_limit_s is None,
            "trials": self.trials,
            "proofs": self.proofs,
            "stop_reason": self.stop_reason.value,
            "versions": tool_versions(),
            "worst": None,
        }
        if worst is None:
            return data
        result, instance = worst.result, worst.result.instance
        assert result.primal_ns is not None
        data["worst"] = {
            "fingerprint": instance.fingerprint(),
            "requests": [request.to_json() for request in instance.requests],
            "limits": instance.limits.to_json(),
            "cost": instance.cost.name,
            "value_ns": worst.rival.value_ns,
            "value_s": self.objective.mean_s(worst.rival.value_ns, count),
            "optimum_ns": result.primal_ns,
            "optimum_s": self.objective.mean_s(result.primal_ns, count),
            "bound_ns": result.dual_ns,
            "status": result.status.value,
            "certificate": result.certificate,
            "excess_at_least": worst.excess.at_least,
            "excess_at_most": worst.excess.at_most,
        }
        return data


def find_adversary(task: AdversaryTask, *, on_step: Callable[[str], None] | None = None) -> AdversarySearch:
    """Search for the trace on which a policy is furthest above the optimum.

    Ctrl-C ends the search, and what was proven before is returned.

    Raises
    ------
    UsageError
        If the policy is unknown, or the objective has several stages.
    PolicyCrashError
        If the code of a user's policy fails.
    """
    return _Search(task, on_step or (lambda _: None)).run()


class _Search:
    """Trials, and a proof of the best after every so many of them."""

    def __init__(self, task: AdversaryTask, tell: Callable[[str], None]) -> None:
        self._task, self._tell = task, tell
        self._rng = np.random.default_rng(task.limits.seed)
        self._started = time.monotonic()
        self._scores: dict[Draft, float] = {}
        self._tried: set[Draft] = set()
        self._worst: Adversary | None = None
        self._trials = 0
        self._begin()

    def run(self) -> AdversarySearch:
        """Search until a limit or Ctrl-C."""
        reason = StopReason.TIME_LIMIT if self._task.limits.time_limit_s else StopReason.FINISHED
        try:
            while not self._is_over:
                for _ in range(TRIALS):
                    if not self._is_over:
                        self._try()
                self._prove()
        except KeyboardInterrupt:
            reason = StopReason.INTERRUPTED
        objective = self._objective(self._task.instance(self._draft))
        return AdversarySearch(
            task=self._task,
            objective=objective,
            worst=self._worst,
            trials=self._trials,
            proofs=len(self._tried),
            stop_reason=reason,
        )

    @property
    def _left_s(self) -> float:
        limit_s = self._task.limits.time_limit_s
        return np.inf if limit_s is None else limit_s - (time.monotonic() - self._started)

    @property
    def _is_over(self) -> bool:
        """Whether a limit is hit; a third of the time is kept for a first proof."""
        limits = self._task.limits
        kept_s = 0.0 if self._worst or limits.time_limit_s is None else limits.time_limit_s / 3
        return self._left_s <= kept_s or (limits.trials is not None and self._trials >= limits.trials)

    def _objective(self, instance: Instance) -> AnyObjective:
        first, *others = read_objectives(self._task.objective, instance)
        if others:
            raise UsageError(f"objective {self._task.objective} has several stages, expected one")
        return first

    def _begin(self) -> None:
        """Go on from any trace."""
        self._draft, self._score, self._best, self._stale = self._random(), -1.0, -1.0, 0

    def _try(self) -> None:
        """Score a trace near the present one, and go on from it if it is hardly worse."""
        self._trials += 1
        if self._stale > PATIENCE:
            self._begin()
        draft = self._changed(self._draft)
        score = self._score_of(draft)
        self._stale = 0 if score > self._best else self._stale + 1
        self._best = max(self._best, score)
        if score >= self._score - TOLERANCE:
            self._draft, self._score = draft, score

    def _score_of(self, draft: Draft) -> float:
        """Excess over the best of some list schedules; -1 if the policy cannot serve the trace."""
        if draft not in self._scores:
            instance = self._task.instance(draft)
            self._scores[draft] = -1.0
            rival = None if instance.split_rejected()[1] else self._rival(instance)
            if rival is not None:
                objective = self._objective(instance)
                schedules = [schedule for _, schedule in first_schedules(instance, objective)]
                least_ns = min(measure(instance, one).objective_ns(objective) for one in schedules)
                self._scores[draft] = (rival.value_ns - least_ns) / max(least_ns, 1)
        return self._scores[draft]

    def _rival(self, instance: Instance) -> Rival | None:
        try:
            return run_rivals(instance, self._objective(instance), [self._task.policy], lambda _: None)[0]
        except PolicyCrashError:
            raise
        except PolicyError:
            return None

    def _prove(self) -> None:
        """Solve the most promising trace that was not, if it may be worse than the worst."""
        fresh = [(score, draft) for draft, score in self._scores.items() if draft not in self._tried]
        known = self._worst.excess.at_least if self._worst and self._worst.is_proven else None
        score, draft = max(fresh, default=(0.0, self._draft))
        if score <= (known or 0.0) or self._left_s <= 0:
            return
        self._tried.add(draft)
        instance = self._task.instance(draft)
        rival = self._rival(instance)
        assert rival is not None, "it was scored"
        candidates = [(rival.policy, rival.whole_run.schedule)]
        limits = self._task.limits.proof(self._left_s)
        result = solve_exactly(instance, self._objective(instance), limits, candidates=candidates)
        found = Adversary(rival=rival, result=result)
        least = percent(found.excess.at_least or 0.0)
        self._tell(
            f"{self._trials} traces scored; {percent(score)} above list schedules, {least} above the best "
            f"schedule of the exact solver, {result.verdict}"
        )
        if self._worst is None or found.rank > self._worst.rank:
            self._worst = found

    def _random(self) -> Draft:
        """Any trace; half of the requests come at once."""
        return self._tidy([self._shape() for _ in range(self._task.bounds.num_requests)])

    def _shape(self) -> Shape:
        bounds, rng = self._task.bounds, self._rng
        late = int(rng.integers(0, bounds.arrival_ticks + 1)) if rng.random() < 0.5 else 0
        prompt, output = bounds.prompt_tokens, bounds.output_tokens
        return Shape(late, int(rng.integers(1, prompt + 1)), int(rng.integers(1, output + 1)))

    def _changed(self, draft: Draft) -> Draft:
        """A request anew, a value up or down, two values exchanged, or two requests alike."""
        shapes, rng, bounds = list(draft), self._rng, self._task.bounds
        i, k = (int(place) for place in rng.integers(0, len(shapes), size=2))
        kind, value = int(rng.integers(0, 4)), int(rng.integers(0, 3))
        if kind == 0:
            shapes[i] = self._shape()
        elif kind == 1:
            most = (bounds.arrival_ticks, bounds.prompt_tokens, bounds.output_tokens)[value]
            least = 0 if value == 0 else 1
            step = int(rng.choice([-2, -1, 1, 2]))
            shapes[i] = _with(shapes[i], value, min(max(shapes[i][value] + step, least), most))
        elif kind == 2:
            one, other = shapes[i], shapes[k]
            shapes[i], shapes[k] = _with(one, value, other[value]), _with(other, value, one[value])
        else:
            shapes[i] = shapes[k]
        return self._tidy(shapes)

    def _tidy(self, shapes: list[Shape]) -> Draft:
        """In the order of arrival, from 0 on, each short enough for the device."""
        limits = self._task.stage.limits
        longest = min(limits.kv_tokens, limits.max_model_len or limits.kv_tokens)
        first = min(shape.arrival_ticks for shape in shapes)
        tidy = []
        for late, prompt, output in shapes:
            fitting = min(prompt, longest)
            tidy.append(Shape(late - first, fitting, min(output, longest - fitting + 1)))
        return tuple(sorted(tidy, key=lambda shape: shape.arrival_ticks))


def _with(shape: Shape, place: int, value: int) -> Shape:
    values = list(shape)
    values[place] = value
    return Shape(*values)
