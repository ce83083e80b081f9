"""The public names, and the example that documents them."""

from __future__ import annotations

import ast
import re

import pytest

import cspsched


def documented_example() -> str:
    """The indented lines of the package's docstring."""
    assert cspsched.__doc__ is not None
    return "\n".join(line[4:] for line in cspsched.__doc__.splitlines() if line.startswith("    "))


def test_documented_example_runs(capsys):
    """The five lines of the docstring compare two policies on a bundled trace; vLLM's excess comes out."""
    exec(compile(documented_example(), "docstring", "exec"), {})
    policy, interval = capsys.readouterr().out.split(" ", 1)
    low, high = (float(end) for end in re.findall(r"=([\d.e-]+)", interval))

    assert policy == "vllm"
    assert 0 <= low <= high < 0.2


def test_example_is_short():
    """An import and four statements."""
    assert len(ast.parse(documented_example()).body) <= 5


@pytest.mark.parametrize("name", cspsched.__all__)
def test_public_name_resolves_and_is_documented(name):
    """Every name can be had, is shown by dir(), and has a docstring."""
    value = getattr(cspsched, name)

    assert name in dir(cspsched)
    assert value.__doc__


def test_names_are_those_of_their_homes():
    """A name from the package is the very object of its module."""
    from cspsched.problem.request import Request
    from cspsched.studies.solving import solve

    assert cspsched.Request is Request
    assert cspsched.solve is solve


def test_unknown_name_is_an_attribute_error():
    """A misspelt name fails as in any module, so hasattr and star imports work."""
    with pytest.raises(AttributeError, match="module 'cspsched' has no attribute 'nonsense'"):
        _ = cspsched.nonsense

    assert not hasattr(cspsched, "nonsense")


def test_solve_and_check_in_five_lines():
    """The other main job by the API: solve a small trace, and let the referee judge it."""
    trace = cspsched.read_trace(cspsched.shipped_trace_path("tiny-12"))
    solution = cspsched.solve(cspsched.make_instance(trace))

    assert solution.result.primal_ns == solution.result.dual_ns
    assert cspsched.find_violations(solution.result.instance, solution.result.schedule) == []
