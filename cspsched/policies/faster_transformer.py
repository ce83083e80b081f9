"""FasterTransformer's request-level batching, as in sarathi-serve (microsoft/sarathi-serve@96f9911).

Source: rules written down from the behaviour of the real scheduler; whole recorded schedules of it are
reproduced by `tests/test_conformance.py`. A batch of requests is admitted when none runs, with
max_model_len tokens (at most the device) reserved for each, and decoded to the end; who finishes leaves and
is not replaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cspsched.policies.batching import Configured
from cspsched.policies.reserving import longest_blocks
from cspsched.policies.sarathi_family import family_rules
from cspsched.policies.settings import require_at_least
from cspsched.problem.instance import Instance
from cspsched.simulate.aggregated.state import Gate
from cspsched.simulate.kernel.rules import Reserve, Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class FasterTransformerSettings:
    """The scheduler's arguments that are simulated; the instance's limits bind as well."""

    max_num_seqs: int = 128
    """Most running requests."""

    def __post_init__(self) -> None:
        require_at_least(self, 1, "max_num_seqs", policy="faster-transformer")


@dataclass(frozen=True, slots=True)
class FasterTransformer(Configured):
    """FasterTransformer (sarathi-serve): a batch of requests runs to its end before the next is admitted."""

    settings: FasterTransformerSettings = FasterTransformerSettings()
    name: ClassVar[str] = "faster-transformer"
    settings_type: ClassVar[type[FasterTransformerSettings]] = FasterTransformerSettings

    def kernel_rules(self, instance: Instance) -> Rules:
        """Rules under an instance's limits and the settings, whichever are tighter."""
        return family_rules(
            instance,
            max_num_seqs=self.settings.max_num_seqs,
            reserve=Reserve.FIXED,
            fixed_blocks=longest_blocks(instance.limits),
            gate=Gate.NOBODY_RUNS,
        )
