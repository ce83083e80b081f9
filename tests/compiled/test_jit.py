"""One text of a function, plain and as machine code; what is kept on disk belongs to the present sources."""

from __future__ import annotations

from types import FunctionType

import pytest

from cspsched.bounds.memory_price.kernel import least_costs
from cspsched.compiled.jit import PACKAGE, compiled, inner, merged, name_on_disk, outer, parts_of
from cspsched.exact.heuristics.plan_scheduler import run_plan
from cspsched.improve.machine import run_list
from cspsched.policies.base import make_policy
from cspsched.problem.sources import source_version
from cspsched.simulate.aggregated.loops import run_vllm
from cspsched.simulate.kernel.support import kernel_rules
from tests.support.kernel_cases import busy_instance

DOUBLED = True
STEP = 3


@inner
def _step(x: int) -> int:
    return x + STEP


@merged
def _doubled(x: int) -> int:
    return 2 * x if DOUBLED else x


@outer
def _counted(x: int) -> int:
    return sum([_step(_doubled(one)) for one in range(x)])


@outer
def _quiet(x: int) -> int:
    return _step(_step(_doubled(x)))


def loop_of(policy: str) -> FunctionType:
    """The loop that a policy is run by."""
    rules = kernel_rules(busy_instance(1, 120), make_policy(policy))
    assert rules is not None
    return rules.run


def with_globals(function: FunctionType, **values: object) -> FunctionType:
    """The same function with other values of global names."""
    return FunctionType(function.__code__, {**function.__globals__, **values}, function.__name__)


def test_a_marked_function_runs_plain_and_compiled():
    """Python calls it as it is, or as machine code, with the functions that it calls."""
    assert _quiet(4) == compiled(_quiet)(4) == 14
    assert compiled(_quiet) is compiled(_quiet)


def test_a_constant_is_ruled_out_wherever_it_is_used():
    """In the function that is asked for and in those that it calls; others keep the value of the module."""
    assert compiled(_quiet, DOUBLED=False)(4) == 10
    assert compiled(_quiet)(4) == 14
    assert name_on_disk(_quiet, DOUBLED=False) != name_on_disk(_quiet)


def test_a_function_is_compiled_once_for_all_integers():
    """A constant argument makes no copy of what is called; what is on disk calls nothing that is compiled."""
    assert compiled(_quiet)(5) == 16
    assert len(compiled(_step).signatures) <= 1


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (least_costs, ["bounds", "compiled"]),
        (run_plan, ["compiled", "exact"]),
        (run_list, ["compiled", "improve"]),
        (run_vllm, ["compiled", "simulate"]),
        (loop_of("srpt"), ["compiled", "policies", "simulate"]),
    ],
)
def test_kept_code_depends_on_the_parts_that_it_calls(function, parts):
    """No other change of a source compiles it anew; any change of these does."""
    assert parts_of(function) == parts
    version = source_version(*(PACKAGE / part for part in parts))
    assert name_on_disk(function).startswith(f"{function.__qualname__}_{version}_")


def test_kept_code_depends_on_what_others_call():
    """A user's functions have a name by what they do and by their numbers, in comprehensions, too."""
    name = name_on_disk(_counted)

    assert name_on_disk(with_globals(_counted)) == name
    assert name_on_disk(with_globals(_counted, DOUBLED=False)) == name  # which it does not use itself
    assert name_on_disk(with_globals(_counted, _step=inner(with_globals(_step, STEP=4)))) != name
    assert name_on_disk(with_globals(_counted, _step=inner(with_globals(_doubled)))) != name
