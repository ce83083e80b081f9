"""The paper's batch-indexed model as anybody would write it down: a baseline, not a part of the package.

One integer program for CP-SAT and for HiGHS (both through OR-Tools): no bounds, hints, cuts or symmetry, and
a horizon of twice the batches of a heuristic. Costs must be linear in the features, all requests at 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ortools.linear_solver import pywraplp

from cspsched.problem.cost import FUNCTION_FEATURES, BatchFeatures
from cspsched.problem.instance import Instance, Preemption
from cspsched.problem.objectives import Objective
from cspsched.units import NS_PER_S

MILLISECOND = NS_PER_S // 1000
PRICED = ("tokens", "prefill_context", "decode_context")


@dataclass(frozen=True)
class NaiveOutcome:
    """Value and bound in nanoseconds; None where the solver has none."""

    primal_ns: int | None
    dual_ns: int | None
    proven: bool


def is_naive(instance: Instance) -> bool:
    """Whether the baseline covers an instance."""
    cost = instance.cost
    linear = all(len(getattr(cost, name).knots) == 1 for name in FUNCTION_FEATURES)
    rest = all(getattr(cost, name).is_zero for name in FUNCTION_FEATURES if name not in PRICED)
    plain = instance.switches.hybrid_batches and not instance.switches.reservation
    at_zero = not any(request.arrival_ns for request in instance.requests)
    whole = instance.switches.holding and instance.switches.chunked_prefill
    return linear and rest and plain and at_zero and whole and instance.limits.block_tokens == 1


def solve_naively(
    instance: Instance, objective: Objective, engine: str, num_batches: int, time_limit_s: float
) -> NaiveOutcome:
    """Minimise with `engine`, "SAT" (CP-SAT) or "HIGHS"."""
    solver = pywraplp.Solver.CreateSolver(engine)
    model = _Model(solver, instance, num_batches)
    model.build()
    model.minimize(objective)
    solver.SetTimeLimit(int(time_limit_s * 1000))
    solver.SetNumThreads(2)
    status = solver.Solve()
    solved = status in (pywraplp.Solver.OPTIMAL, pywraplp.Solver.FEASIBLE)
    bound = solver.Objective().BestBound()
    return NaiveOutcome(
        primal_ns=round(solver.Objective().Value() * MILLISECOND) if solved else None,
        dual_ns=round(bound * MILLISECOND) if 0 <= bound < 1e15 else None,
        proven=status == pywraplp.Solver.OPTIMAL,
    )


class _Model:
    """c, n, g, e and the phases of every request and batch, with big-M rows."""

    def __init__(self, solver: Any, instance: Instance, num_batches: int) -> None:
        self.solver, self.instance, self.batches = solver, instance, range(num_batches)
        self.ends: list[Any] = []
        self.generates: dict[tuple[int, int], Any] = {}

    def build(self) -> None:
        """All rules, batch by batch."""
        solver, limits, cost = self.solver, self.instance.limits, self.instance.cost
        state = [(0, 0, 0) for _ in self.instance.requests]
        clock = 0
        for j in self.batches:
            used, prefill, decode = (solver.BoolVar(f"{name}{j}") for name in ("used", "prefill", "decode"))
            columns = [self._request(i, j, state, used, prefill, decode) for i in range(len(state))]
            tokens, kv, active, prefills, decodes, read, context = (
                sum(c) for c in zip(*columns, strict=True)
            )
            solver.Add(tokens <= limits.max_batch_tokens)
            solver.Add(kv <= limits.kv_tokens)
            solver.Add(active <= limits.max_batch_requests)
            terms = (
                (cost.step, used), (cost.prefill_batch, prefill), (cost.decode_batch, decode),
                (cost.prefill_request, prefills), (cost.decode_request, decodes),
                (cost.tokens.slopes[0], tokens), (cost.decode_context.slopes[0], read),
                (cost.prefill_context.slopes[0], context),
            )  # fmt: skip
            clock = clock + sum(float(price / MILLISECOND) * amount for price, amount in terms)
            self.ends.append(clock)
        for i, request in enumerate(self.instance.requests):
            solver.Add(sum(self.generates[i, j] for j in self.batches) == request.output_tokens)

    def _request(
        self, i: int, j: int, state: list[Any], used: Any, has_prefill: Any, has_decode: Any
    ) -> tuple[Any, ...]:
        """Variables and rows of one request in one batch; `state` is (kv, generated, decoding) before it."""
        solver, request, budget = (
            self.solver,
            self.instance.requests[i],
            self.instance.limits.max_batch_tokens,
        )
        before, generated, decoding = state[i]
        peak, evictable = request.peak_kv_tokens, self.instance.switches.preemption is not Preemption.NONE
        tokens = solver.IntVar(0, min(budget, peak), f"c{i},{j}")
        carried = solver.IntVar(0, peak, f"n{i},{j}")
        prefills, decodes, generates, finished = (solver.BoolVar(f"{n}{i},{j}") for n in ("p", "d", "g", "f"))
        evicted = solver.IntVar(0, int(evictable), f"e{i},{j}")
        in_decode = solver.BoolVar(f"phase{i},{j}")
        read, context = solver.NumVar(0, peak, ""), solver.NumVar(0, peak, "")
        active, kv, known = prefills + decodes, carried + tokens, request.prompt_tokens + generated
        rows = [
            active <= used, prefills <= has_prefill, decodes <= has_decode, active <= 1 - finished,
            tokens >= active, tokens <= min(budget, peak) * active, tokens <= 1 + peak * (1 - decodes),
            request.output_tokens * finished <= generated, finished >= generated - request.output_tokens + 1,
            carried <= before, carried >= before - peak * (evicted + finished),
            carried <= peak * (1 - evicted), carried <= peak * (1 - finished),
            generates <= active, kv <= known - 1 + generates, kv >= known - peak * 2 * (1 - generates),
            in_decode <= decoding, in_decode <= 1 - evicted, in_decode <= 1 - finished,
            in_decode >= decoding - evicted - finished, decodes <= in_decode, prefills <= 1 - in_decode,
            read >= carried - peak * (1 - decodes), context >= carried - peak * (1 - prefills),
        ]  # fmt: skip
        for row in rows:
            solver.Add(row)
        self.generates[i, j] = generates
        caught_up = solver.NumVar(0, 1, "")
        solver.Add(caught_up >= generates)
        solver.Add(caught_up >= in_decode)
        solver.Add(caught_up <= generates + in_decode)
        state[i] = (kv, generated + generates, caught_up)
        return tokens, kv, active, prefills, decodes, read, context

    def minimize(self, objective: Objective) -> None:
        """Makespan, or the sum of the ends of everybody's last batch."""
        if objective is Objective.MAKESPAN:
            self.solver.Minimize(self.ends[-1])
            return
        longest = sum(
            float(self.instance.cost.batch_time_ns(_everything(self.instance))) / MILLISECOND
            for _ in self.batches
        )
        completions = []
        for i in range(len(self.instance.requests)):
            completion = self.solver.NumVar(0, longest, f"completion{i}")
            completions.append(completion)
            for j in self.batches:
                self.solver.Add(completion >= self.ends[j] - longest * (1 - self.generates[i, j]))
        self.solver.Minimize(sum(completions))


def _everything(instance: Instance) -> BatchFeatures[int]:
    """Features that no batch exceeds."""
    total, count = sum(request.peak_kv_tokens for request in instance.requests), len(instance.requests)
    return BatchFeatures(total, 0, total, total, total, count, count, count)
