"""What a policy's excess owes to ignorance: the best of those that know as much, and of all the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cspsched.errors import InputError, PolicyCrashError, PolicyError, UsageError
from cspsched.improve.rivals import Rival, run_rivals
from cspsched.policies.base import BUILT_IN
from cspsched.policies.catalogue import READS_OUTPUTS
from cspsched.policies.text import PolicyText
from cspsched.problem.instance import Instance
from cspsched.problem.objectives import AnyObjective
from cspsched.studies.reference import Reference


@dataclass(frozen=True, kw_only=True)
class Pool:
    """What the built-in policies reach, apart by what they know before a request is finished.

    Attributes
    ----------
    unaware
        Those that do not read how many tokens a request will generate.
    aware
        Those that do, as they are and under the token budget of the best of the others.
    skipped
        Policies that cannot run on the instance, each with the reason.
    """

    unaware: tuple[Rival, ...]
    aware: tuple[Rival, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def rivals(self) -> tuple[Rival, ...]:
        """All of them."""
        return (*self.unaware, *self.aware)

    def as_they_are(self) -> tuple[Rival, ...]:
        """Those with default settings and the given budget, in the order of the registry."""
        by_name = {rival.policy: rival for rival in self.rivals}
        return tuple(by_name[name] for name in BUILT_IN if name in by_name)


def run_pool(
    instance: Instance, objective: AnyObjective, known: Sequence[Rival], tell: Callable[[str], None]
) -> Pool:
    """Run all built-in policies with their default settings.

    Parameters
    ----------
    known
        Runs of the same instance; who is among them does not run again.
    """
    ran = {rival.policy: rival for rival in known}
    skipped = list[tuple[str, str]]()

    def run(name: str, under: Instance) -> Rival | None:
        try:
            return run_rivals(under, objective, [name], tell)[0]
        except PolicyCrashError:
            raise
        except (UsageError, InputError, PolicyError) as reason:
            skipped.append((name, str(reason)))
            return None

    found = {name: ran.get(name) or run(name, instance) for name in BUILT_IN}
    unaware = [one for name, one in found.items() if one and name not in READS_OUTPUTS]
    aware = [one for name, one in found.items() if one and name in READS_OUTPUTS]
    best = min(unaware, key=lambda one: one.value_ns, default=None)
    if best is not None:
        tokens = int(best.whole_run.metrics.history.features.tokens.max())
        tight = replace(instance, limits=replace(instance.limits, max_batch_tokens=tokens))
        for one in list(aware) if tokens < instance.limits.max_batch_tokens else ():
            again = run(one.policy, tight)
            if again is not None:
                aware.append(replace(again, policy=f"{again.policy} (token budget {tokens})"))
    return Pool(unaware=tuple(unaware), aware=tuple(aware), skipped=tuple(skipped))


@dataclass(frozen=True, kw_only=True)
class InformationLadder:
    """A policy's value, and the best known with the same and with more knowledge; each no worse than before.

    Values in nanoseconds, or in what the objective counts.

    Attributes
    ----------
    reads_outputs
        Whether the policy itself reads output lengths; None if it is not built in.
    same_ns, same_by
        The best of the policy and of the built-in policies that know no more than it.
    lengths_ns, lengths_by
        The best of all built-in policies: online, and knowing output lengths.
    clairvoyant_ns, clairvoyant_by
        The best known schedule: output lengths and arrivals are known.
    bound_ns
        No schedule is below.
    """

    policy: str
    reads_outputs: bool | None
    value_ns: int
    same_ns: int
    same_by: str
    lengths_ns: int
    lengths_by: str
    clairvoyant_ns: int
    clairvoyant_by: str
    bound_ns: int

    @property
    def own_ns(self) -> int:
        """Owed to the policy itself: another one does better with what it knows."""
        return self.value_ns - self.same_ns

    @property
    def outputs_ns(self) -> int:
        """Owed to not knowing output lengths, as far as an online policy here makes use of them."""
        return self.same_ns - self.lengths_ns

    @property
    def arrivals_ns(self) -> int:
        """Owed to not knowing arrivals, or to what no online policy here does."""
        return self.lengths_ns - self.clairvoyant_ns

    @property
    def open_ns(self) -> int:
        """Between the best known schedule and the bound: not known."""
        return self.clairvoyant_ns - self.bound_ns

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "policy": self.policy,
            "reads_outputs": self.reads_outputs,
            "value_ns": self.value_ns,
            "same_knowledge_ns": self.same_ns,
            "same_knowledge_by": self.same_by,
            "knowing_outputs_ns": self.lengths_ns,
            "knowing_outputs_by": self.lengths_by,
            "clairvoyant_ns": self.clairvoyant_ns,
            "clairvoyant_by": self.clairvoyant_by,
            "bound_ns": self.bound_ns,
        }


def climb_information(rival: Rival, text: str, pool: Pool, reference: Reference) -> InformationLadder:
    """The ladder of a policy, whose run may but need not be in the pool.

    Parameters
    ----------
    text
        As it was named, with its settings.
    """
    name = PolicyText.read(text).name
    reads = name in READS_OUTPUTS if name in BUILT_IN else None
    same = min((rival, *(pool.rivals if reads else pool.unaware)), key=lambda one: one.value_ns)
    lengths = min((same, *pool.rivals), key=lambda one: one.value_ns)
    return InformationLadder(
        policy=rival.policy,
        reads_outputs=reads,
        value_ns=rival.value_ns,
        same_ns=same.value_ns,
        same_by=same.policy,
        lengths_ns=lengths.value_ns,
        lengths_by=lengths.policy,
        clairvoyant_ns=reference.best_known_ns,
        clairvoyant_by=reference.best_known_by,
        bound_ns=reference.bound_ns,
    )
