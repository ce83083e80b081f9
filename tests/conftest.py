"""How tests run: property tests draw the same examples every time, and what is compiled is compiled once."""

import pytest
from hypothesis import settings

import cspsched.cli.console

settings.register_profile("cspsched", derandomize=True, deadline=None)
settings.load_profile("cspsched")

COMPILING = {
    "policies/test_catalogue.py",
    "policies/test_compiled_user_policy.py",
    "policies/test_conformance.py",
    "policies/test_engines.py",
    "policies/test_expected.py",
    "policies/test_failing.py",
    "policies/test_research.py",
    "policies/test_vidur.py",
    "simulate/test_cancel.py",
    "simulate/test_closed_loop.py",
    "simulate/test_kernel_decisions.py",
    "simulate/test_kernel_run.py",
    "simulate/test_kernel_schedules.py",
    "simulate/test_replica.py",
}
"""Files that compile loops of policies. In one process what these share is compiled once."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A process for each file, and one for all files that compile."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.split("::")[0]
            return "compiling" if file.removeprefix("tests/") in COMPILING else file

    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def _no_sign_of_life(monkeypatch):
    """What a command says because a machine is slow is not in what tests read."""
    monkeypatch.setattr(cspsched.cli.console, "MOST_SILENCE_S", 1e9)
