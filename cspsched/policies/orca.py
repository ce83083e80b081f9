"""Orca's iteration-level batching, as in sarathi-serve (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`, with reservation=max. Two other reservations are the variants
to which the vLLM paper (SOSP '23, section 6.1) compares: outputs known up to a factor of two, or exactly. The
fourth, declared, is that of the Orca paper (OSDI '22): the prompt and the max_tokens of the request.
Without a token budget of its own it runs under the instance's C: a prompt waits for a batch that holds it.
Where max_model_len is not known or more than the device holds, the whole device is reserved (the real program
does not start then; a server for this device would be given that length).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.reserving import RESERVE, Reservation, longest_blocks, reserved_outputs
from cspsched.policies.sarathi_family import family_rules
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.kernel.rules import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class OrcaSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    max_num_seqs: int = 128
    """Most running requests."""
    reservation: Reservation = Reservation.MAX
    """Tokens for which an admission reserves KV blocks."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_num_seqs", policy="orca")


@dataclass(frozen=True, slots=True)
class Orca(Configured):
    """Orca (sarathi-serve): decodes and whole prompts in one batch, memory reserved to the end."""

    settings: OrcaSettings = OrcaSettings()
    name: ClassVar[str] = "orca"
    settings_type: ClassVar[type[OrcaSettings]] = OrcaSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return family_rules(
            instance,
            max_num_seqs=self.settings.max_num_seqs,
            reserve=RESERVE[self.settings.reservation],
            fixed_blocks=longest_blocks(instance.limits),
            expected_tokens=reserved_outputs(instance, self.settings.reservation),
        )
