"""What using the estimator takes, beside its aims: CPU seconds of a fit, bytes, milliseconds, nanoseconds.

Usage: python benchmarks/estimator_speed.py DATA_FOLDER

Times are `time.process_time`, the best of several. Each look-up is checked against the exact rational form
while it is timed; a wrong answer stops the run, an aim that is missed makes the exit code 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import numba as nb
import numpy as np
from estimator_accuracy import drawn_batches

from cspsched.compiled.batch_time import term_ns
from cspsched.compiled.jit import compiled
from cspsched.costs.devices import load_device
from cspsched.costs.estimator import fit_profile
from cspsched.costs.estimator.write import write_cost
from cspsched.costs.importers.aiconfigurator import AicTables
from cspsched.costs.importers.llmservingsim import import_llmservingsim
from cspsched.costs.models import load_model
from cspsched.costs.presets import load_cost
from cspsched.problem.cost import BatchFeatures, CostModel, IntArray
from cspsched.simulate.kernel.cost import flatten_cost
from cspsched.simulate.kernel.rules import Rules

REPEATS = 7
SHIPPED = ("h100-llama-3.1-8b", "rtx-pro-6000-llama-3.1-8b")
"""One of separate kernels for prefill and decode, one of a kernel for both."""
NUM_POINTS, MOST_TOKENS, KV_TOKENS = 100_000, 8192, 1_000_000


@dataclass(frozen=True)
class Figure:
    """A measured figure, and the most that it should be if there is an aim."""

    what: str
    value: float
    aim: float | None
    unit: str

    @property
    def is_met(self) -> bool:
        """Whether the figure is at most its aim."""
        return self.aim is None or self.value <= self.aim

    def __str__(self) -> str:
        aim = "" if self.aim is None else f" aim {self.aim:g}"
        return f"{self.what:44} {self.value:9.2f} {self.unit:5}{aim}{'' if self.is_met else '  MISSED'}"


def cpu_seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU time of the quickest of some runs."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def fits(folder: Path) -> Iterator[Figure]:
    """From raw tables to a written cost file, and reading it again."""
    model, device = load_model("llama-3.1-8b"), load_device("h100")

    def aiconfigurator(path: Path) -> None:
        tables = AicTables.read(sorted(folder.glob("prof_aic_h100_*")))
        write_cost(fit_profile(tables.rows(model, device), model), {}, "a benchmark", path)

    def llmservingsim(path: Path) -> None:
        rows = import_llmservingsim(sorted(folder.glob("*RTXPRO6000_llama8b_*.csv")), model)
        write_cost(fit_profile(rows, model, engine="unified"), {}, "a benchmark", path)

    with TemporaryDirectory() as name:
        for project in (aiconfigurator, llmservingsim):
            path = Path(name) / f"{project.__name__}.toml"
            seconds = cpu_seconds(lambda run=project, to=path: run(to), repeats=1)
            yield Figure(f"raw tables of {project.__name__} to a model", seconds, 5, "CPU s")
            yield Figure("  its file", path.stat().st_size / 1000, 300, "kB")
            yield Figure("  loading it again", 1000 * cpu_seconds(lambda to=path: load_cost(to)), 50, "ms")


def look_ups(cost: CostModel) -> Iterator[Figure]:
    """One term and one batch in Python, one term in the kernel, many batches as arrays."""
    points = np.random.default_rng(0).integers(1, MOST_TOKENS, NUM_POINTS)
    exact = sum(ceil(cost.tokens.exact(point)) for point in points.tolist())
    one, some = cost.tokens.ceil, points.tolist()
    seconds = cpu_seconds(lambda: [one(point) for point in some])
    yield checked("one term in Python", sum(one(point) for point in some), exact, seconds / NUM_POINTS, 1000)
    prices = flat_prices(cost)
    seconds = cpu_seconds(lambda: sum_of_terms(prices, 1, points))
    found = sum_of_terms(prices, 1, points)
    yield checked("one term in the kernel", found, exact, seconds / NUM_POINTS, 20)
    batches = drawn_batches()
    singles = [BatchFeatures(*row) for row in np.stack(batches, axis=1).tolist()]
    exact = sum(exact_time_ns(cost, batch) for batch in singles)
    seconds = cpu_seconds(lambda: [cost.batch_time_ns(batch) for batch in singles])
    found = sum(map(cost.batch_time_ns, singles))
    yield checked("a whole batch in Python", found, exact, seconds / len(singles), None)
    seconds = cpu_seconds(lambda: cost.batch_times_ns(batches))
    found = int(cost.batch_times_ns(batches).sum())
    yield checked("a whole batch among 2000 in arrays", found, exact, seconds / len(singles), None)


def checked(what: str, found: int, exact: int, seconds: float, aim_ns: float | None) -> Figure:
    """A look-up that gave the right answers, in nanoseconds."""
    if found != exact:
        raise SystemExit(f"{what}: the answers sum up to {found}, expected {exact}")
    return Figure(what, 1e9 * seconds, aim_ns, "ns")


def exact_time_ns(cost: CostModel, batch: BatchFeatures[int]) -> int:
    """The formula in rationals, each term rounded up once."""
    terms = [cost.step]
    terms += [function.exact(batch[feature]) for feature, function in cost.functions(mixed=False)]
    if batch.num_prefills:
        terms.append(cost.prefill_batch)
        terms += [function.exact(batch[feature]) for feature, function in cost.functions(mixed=True)]
    if batch.num_decodes:
        terms.append(cost.decode_batch)
    return sum(map(ceil, terms))


def flat_prices(cost: CostModel) -> IntArray:
    """The form that the kernel prices batches from; its first term is that over the tokens of a batch."""
    rules = Rules(kv_blocks=KV_TOKENS, block_tokens=1, max_tokens=MOST_TOKENS, max_running=256)
    prices = flatten_cost(cost, rules, KV_TOKENS)
    assert prices is not None
    assert prices[1, 0] == BatchFeatures._fields.index("tokens")
    return prices


TERM_NS = compiled(term_ns)


@nb.njit(nogil=True)
def sum_of_terms(prices: IntArray, position: int, points: IntArray) -> int:
    """Look a term up at many points, as the kernel does."""
    total = 0
    for point in points:
        total += TERM_NS(prices, position, point)
    return total


def main() -> None:
    """Measure all and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    arguments = parser.parse_args()
    met = True
    for part in (fits(arguments.data_folder), *(look_ups(load_cost(name)) for name in SHIPPED)):
        for figure in part:
            met &= figure.is_met
            print(figure, flush=True)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
