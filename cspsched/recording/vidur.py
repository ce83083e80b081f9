"""A recorded run of Vidur replayed: our policy on its requests and tables, compared batch by batch.

Times are femtoseconds, see `vidur_machine.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cspsched.costs.vidur_memory import plan_vidur_memory
from cspsched.costs.vidur_tables import VidurTables
from cspsched.errors import InputError
from cspsched.policies.base import make_policy
from cspsched.problem.instance import Limits
from cspsched.recording.cases import VidurRun
from cspsched.recording.engines import NotSimulatedError
from cspsched.recording.replay import Replay, Verdict
from cspsched.recording.vidur_case import SCHEDULER, BatchRow, RequestRow, VidurCase, VidurConfig
from cspsched.recording.vidur_machine import FS_PER_S, VidurRequest
from cspsched.recording.vidur_replicas import Replicas
from cspsched.simulate import Policy, PolicyError
from cspsched.simulate.kernel import Engine

TOLERANCE_FS = FS_PER_S // 10**9
"""Times within 1e-9 s are equal."""
POLICIES = {
    "vllm": "vidur-vllm",
    "sarathi": "vidur-sarathi",
    "orca": "vidur-orca",
    "faster_transformer": "vidur-faster-transformer",
}
"""Replica schedulers that can be replayed. No run of lightllm can be recorded: its tables are empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurDifference:
    """The first batch or request in which recording and simulation part.

    Attributes
    ----------
    where
        Such as `batch 17 of replica 0` or `request 3`.
    fields
        What differs.
    recorded, simulated
        Both sides in words; None is one that has ended.
    """

    where: str
    fields: tuple[str, ...]
    recorded: str | None
    simulated: str | None

    @property
    def sentence(self) -> str:
        """Both sides in one line."""
        recorded, simulated = (side or "has ended" for side in (self.recorded, self.simulated))
        return f"{self.where}, {', '.join(self.fields)}: recorded {recorded}; simulated {simulated}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VidurReplay:
    """What a replay came to.

    Attributes
    ----------
    num_restarts
        Restarts that were recorded.
    time_error_s
        Largest difference of a time of a batch or of a request, as far as they were compared.
    difference
        The first one; None if all is equal.
    """

    case: str
    policy: str
    num_replicas: int
    num_batches: int
    num_requests: int
    num_restarts: int
    time_error_s: float
    difference: VidurDifference | None

    @property
    def is_equal(self) -> bool:
        """Whether all batches and requests are equal, times within 1e-9 s."""
        return self.difference is None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        difference = self.difference
        data: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        names = [one.name for one in fields(VidurDifference)]
        data["difference"] = difference and {name: getattr(difference, name) for name in names}
        return data


def replay_vidur_case(folder: Path, *, tables: Path | None = None, emulate_bugs: bool = True) -> VidurReplay:
    """Replay the recorded run of a folder: its requests, its settings, its tables, our policy.

    Compared are, for every replica, all batches in the order in which they were formed (requests in order,
    tokens, prefill tokens, when formed, when completed), and all requests (restarts, when scheduled, when
    prefilled, when completed, time on the stages and between them).

    Parameters
    ----------
    tables
        File of the tables. Default: the one in `cost_tables` beside the folder after which that is named.
    emulate_bugs
        Follow Vidur's defects, too, as a recorded run does.

    Raises
    ------
    InputError
        If a file is missing or holds a wrong value, or a batch is larger than the tables.
    NotSimulatedError
        If the run needs what is not simulated.
    PolicyError
        If the simulation gets stuck.
    """
    case = VidurCase.read(folder, tables)
    case.config.require_simulated()
    policy, limits = make_setup(case.config, emulate_bugs=emulate_bugs)
    replicas = Replicas(
        count=len(case.batches),
        policy=policy,
        limits=limits,
        tables=VidurTables.read(case.tables, case.config.model()),
        emulate_bugs=emulate_bugs,
    )
    looks_at_replicas = replicas.count > 1 and case.config.router == "lor"
    run = replicas.run_least_outstanding if looks_at_replicas else replicas.run_round_robin
    comparison = _Comparison()
    for number, replica in enumerate(run(case.requests)):
        comparison.add_batches(number, case.batches[number], replica.batches())
        for request, noted in zip(replica.requests, replica.noted, strict=True):
            name = request.request_id
            comparison.add_request(name, case.outcomes[name], _outcome(noted))
    return VidurReplay(
        case=case.name,
        policy=policy.label,
        num_replicas=replicas.count,
        num_batches=sum(map(len, case.batches)),
        num_requests=len(case.requests),
        num_restarts=sum(row.num_restarts for row in case.outcomes.values()),
        time_error_s=comparison.time_error_fs / FS_PER_S,
        difference=comparison.difference,
    )


def judge_vidur_run(run: VidurRun, engine: Engine = Engine.PLAIN) -> Replay:
    """Replay a run; what keeps it from being replayed becomes its verdict."""
    if engine is Engine.COMPILED:
        # Its batches overlap on the stages of a machine, which only plain Python hands them to.
        reason = "compiled code cannot hand batches to Vidur's machine"
        return Replay(case=run.name, verdict=Verdict.NOT_SIMULATED, reason=reason)
    try:
        replay = replay_vidur_case(run.folder)
    except NotSimulatedError as error:
        return Replay(case=run.name, verdict=Verdict.NOT_SIMULATED, reason=str(error))
    except PolicyError as error:
        return Replay(case=run.name, verdict=Verdict.DIFFERS, reason=str(error))
    except InputError as error:
        return Replay(case=run.name, verdict=Verdict.UNREADABLE, reason=str(error))
    return Replay(
        case=run.name,
        verdict=Verdict.EQUAL if replay.is_equal else Verdict.DIFFERS,
        source="microsoft/vidur",
        policy=replay.policy,
        num_iterations=replay.num_batches,
        reason=None if replay.difference is None else replay.difference.sentence,
        notes=(f"times are within {replay.time_error_s:.1e} s",),
    )


def make_setup(config: VidurConfig, *, emulate_bugs: bool) -> tuple[Policy, Limits]:
    """Policy and limits of a replica; blocks by Vidur's planner where the run does not name their number.

    Raises
    ------
    NotSimulatedError
        If the replica scheduler is none of `POLICIES`.
    InputError
        If a value is missing or wrong.
    """
    scheduler = config.get(f"{SCHEDULER}.name", str)
    if scheduler not in POLICIES:
        raise NotSimulatedError(f"the replica scheduler {scheduler!r}; there are: {', '.join(POLICIES)}")
    name = POLICIES[scheduler]
    replica, block_size = config.replica(), config.count(f"{SCHEDULER}.block_size")
    max_tokens = config.count("request_generator_config.max_tokens")
    settings: dict[str, Any] = {
        "num_pipeline_stages": replica.num_pipeline_stages,
        "emulate_bugs": str(emulate_bugs).lower(),
    }
    known = {one.name for one in fields(getattr(make_policy(name), "settings"))}  # noqa: B009 - no part of the protocol
    num_blocks = None
    if config.get_any(f"{SCHEDULER}.num_blocks") is not None:
        num_blocks = config.count(f"{SCHEDULER}.num_blocks")
    if num_blocks is None or "max_batch_size" in known:
        memory = plan_vidur_memory(replica, max_tokens=max_tokens, block_size=block_size)
        num_blocks = num_blocks or memory.num_blocks
        settings["max_batch_size"] = memory.max_batch_size
    for key in ("batch_size_cap", "watermark_blocks_fraction", "max_tokens_in_batch", "chunk_size"):
        if key in known:
            settings[key] = config.get_any(f"{SCHEDULER}.{key}")
    text = ",".join(f"{key}={value}" for key, value in settings.items() if key in known)
    cap = config.count(f"{SCHEDULER}.batch_size_cap")
    limits = Limits(
        kv_blocks=num_blocks,
        block_tokens=block_size,
        # Vidur has no such limits beside those of the policy.
        max_batch_tokens=cap * max_tokens,
        max_batch_requests=cap * replica.num_pipeline_stages,
        max_model_len=max_tokens,
    )
    return make_policy(f"{name}:{text}"), limits


def _outcome(request: VidurRequest) -> RequestRow:
    """What a finished request has come to; it has run, so its times are known."""
    scheduled, prefilled = request.scheduled_fs, request.prefill_completed_fs
    return RequestRow(
        num_restarts=request.num_restarts,
        scheduled_fs=scheduled or 0,
        prefill_completed_fs=prefilled or 0,
        completed_fs=request.completed_fs or 0,
        execution_fs=request.execution_fs,
        preempted_fs=request.preempted_fs,
    )


class _Comparison:
    """The first difference, and the largest of those in time."""

    def __init__(self) -> None:
        self.time_error_fs = 0
        self.difference: VidurDifference | None = None

    def add_batches(self, replica: int, recorded: Sequence[BatchRow], simulated: Sequence[BatchRow]) -> None:
        """Compare batch by batch, up to the first that differs: after it nothing would be alike."""
        for number, (theirs, ours) in enumerate(zip_longest(recorded, simulated)):
            if not self._add(f"batch {number} of replica {replica}", theirs, ours):
                return

    def add_request(self, name: str, recorded: RequestRow, simulated: RequestRow) -> None:
        """Compare a request."""
        self._add(f"request {name}", recorded, simulated)

    def _add(
        self, where: str, recorded: BatchRow | RequestRow | None, simulated: BatchRow | RequestRow | None
    ) -> bool:
        """Whether both sides are equal."""
        names = self._differing(recorded, simulated) if recorded and simulated else ("end",)
        if names and self.difference is None:
            self.difference = VidurDifference(
                where=where, fields=names, recorded=_words(recorded), simulated=_words(simulated)
            )
        return not names

    def _differing(
        self, recorded: BatchRow | RequestRow, simulated: BatchRow | RequestRow
    ) -> tuple[str, ...]:
        """Names of what differs; of times only if by more than the tolerance."""
        theirs, ours = recorded._asdict(), simulated._asdict()
        errors_fs = {name: abs(theirs[name] - ours[name]) for name in theirs if name.endswith("_fs")}
        self.time_error_fs = max(self.time_error_fs, *errors_fs.values())
        return tuple(
            name
            for name in theirs
            if (errors_fs[name] > TOLERANCE_FS if name in errors_fs else theirs[name] != ours[name])
        )


def _words(row: BatchRow | RequestRow | None) -> str | None:
    """A side of a difference, times in seconds; of a batch only what does not make it unreadable."""
    if row is None:
        return None
    parts = []
    for name, value in row._asdict().items():
        if name == "entries":
            parts.append(" ".join(f"{request}:{tokens}" for request, tokens in value))
        elif name.endswith("_fs"):
            parts.append(f"{name.removesuffix('_fs')} {value / FS_PER_S:.12f} s")
        else:
            parts.append(f"{name} {value}")
    return ", ".join(parts)
