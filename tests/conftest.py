"""Property tests draw the same examples every time; a failure in CI is one that anybody can repeat."""

import pytest
from hypothesis import settings

import cspsched.cli.console

settings.register_profile("cspsched", derandomize=True, deadline=None)
settings.load_profile("cspsched")


@pytest.fixture(autouse=True)
def _no_sign_of_life(monkeypatch):
    """What a command says because a machine is slow is not in what tests read."""
    monkeypatch.setattr(cspsched.cli.console, "MOST_SILENCE_S", 1e9)
