"""A user's compiled policy: the page's example runs plain and compiled, and is compiled anew when changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cspsched.compiled.jit import name_on_disk
from cspsched.policies.base import make_policy
from cspsched.referee.rules import find_violations
from cspsched.simulate import Policy, simulate_fast
from cspsched.simulate.kernel.rules import HasKernelRules
from tests.support.kernel_cases import busy_instance, digest
from tests.support.places import DOCS

PAGE = DOCS / "adding_a_policy.md"


@pytest.fixture
def source() -> str:
    """The example's text."""
    page = PAGE.read_text(encoding="utf-8")
    (text,) = re.findall(r"In\s+`compiled_policy.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    return str(text)


def policy_of(folder: Path, source: str) -> Policy:
    """The policy of a file with that text."""
    file = folder / "compiled_policy.py"
    file.write_text(source, encoding="utf-8")
    return make_policy(f"{file}:Margin")


def name_of(policy: Policy) -> str:
    """Name of its machine code."""
    assert isinstance(policy, HasKernelRules)
    rules = policy.kernel_rules(busy_instance(1, 120))
    assert rules is not None
    return name_on_disk(rules.run)


def test_the_example_runs_plain_and_compiled(tmp_path: Path, source: str) -> None:
    """The same schedule, which the referee accepts; shortest prompts go first above a margin of 6 blocks."""
    instance, policy = busy_instance(300, 120), policy_of(tmp_path, source)
    plain = simulate_fast(instance, policy, plain=True).to_simulation()

    assert find_violations(instance, plain.schedule) == []
    assert digest(simulate_fast(instance, policy).to_simulation()) == digest(plain)
    assert plain.schedule.num_batches > 300


@pytest.mark.parametrize(
    ("old", "new"),
    [("> k.own.spare_blocks", ">= k.own.spare_blocks"), ("num_refused += 1", "num_refused += 2")],
)
def test_a_changed_function_is_compiled_anew(tmp_path: Path, source: str, old: str, new: str) -> None:
    """Its machine code has another name; that of the same text has the same."""
    first = name_of(policy_of(tmp_path, source))

    assert name_of(policy_of(tmp_path, source)) == first
    assert name_of(policy_of(tmp_path, source.replace(old, new))) != first
