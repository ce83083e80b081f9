"""How the GPUs of one engine share a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cspsched.errors import InputError
from cspsched.problem.json_io import require_int

DEGREES = ("tensor_parallel", "data_parallel", "expert_parallel", "pipeline_parallel")
SHORT = ("TP", "DP", "EP", "PP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallelism:
    """Ranks by what they share, in the words of vLLM.

    Attributes
    ----------
    tensor
        Ranks that share every layer, head by head and column by column.
    data
        Groups of such ranks that keep the KV cache of requests of their own (data-parallel attention), and
        share the experts of a mixture-of-experts model: every layer, their tokens meet there.
    pipeline
        Stages, each of which holds some of the layers on ranks of its own.
    has_expert_parallel
        Whether a rank holds whole experts, its part of all of them, in place of a slice of each.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    has_expert_parallel: bool = False

    def __post_init__(self) -> None:
        for name in ("tensor", "data", "pipeline"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}_parallel is {getattr(self, name)}, expected at least 1")

    @property
    def num_ranks(self) -> int:
        """GPUs of the engine, or of one of its stages, which all share the experts."""
        return self.tensor * self.data

    @property
    def expert_slices(self) -> int:
        """Ranks over which each expert is cut."""
        return 1 if self.has_expert_parallel else self.num_ranks

    @property
    def expert_groups(self) -> int:
        """Ranks over which whole experts are spread."""
        return self.num_ranks if self.has_expert_parallel else 1

    @property
    def degrees(self) -> dict[str, int]:
        """Ranks of each kind, by their names in files."""
        return dict(zip(DEGREES, (self.tensor, self.data, self.expert_groups, self.pipeline), strict=True))

    @classmethod
    def of_degrees(cls, data: Mapping[str, object], where: str) -> Parallelism | None:
        """The same read from a file, in which one rank of a kind may be left out; None without any.

        Raises
        ------
        InputError
            If a degree is no whole number, or the experts are spread over other ranks than there are.
        """
        if not set(DEGREES) & set(data):
            return None
        given = (require_int({name: 1} | dict(data), name, where) for name in DEGREES)
        tensor, groups, experts, stages = given
        found = cls(tensor=tensor, data=groups, pipeline=stages, has_expert_parallel=experts > 1)
        if found.expert_groups != experts:
            raise InputError(
                f"{where}: expert_parallel is {experts}, expected 1 or all {found.num_ranks} ranks"
            )
        return found

    @property
    def title(self) -> str:
        """For people, such as `TP 2, DP 2, EP 4`."""
        parts = dict(zip(SHORT, self.degrees.values(), strict=True))
        return ", ".join(f"{name} {number}" for name, number in parts.items() if number > 1) or "TP 1"

    @property
    def suffix(self) -> str:
        """End of the name of a cost model, such as `-tp2`; empty for one GPU."""
        parts = zip(SHORT, self.degrees.values(), strict=True)
        return "".join(f"-{name.lower()}{number}" for name, number in parts if number > 1)


ONE_GPU = Parallelism()
