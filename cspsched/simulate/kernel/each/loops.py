"""Compiled: a loop over decisions for each kind of policy."""

from __future__ import annotations

from collections.abc import Callable

from cspsched.simulate.kernel.each.ahead import conclude_ahead
from cspsched.simulate.kernel.each.batch import begin, conclude
from cspsched.simulate.kernel.each.capacity import capacity_step
from cspsched.simulate.kernel.each.decided import decided_step, submit_to_decided
from cspsched.simulate.kernel.each.family import family_step
from cspsched.simulate.kernel.each.family_parts import submit_to_family
from cspsched.simulate.kernel.each.queue_run import queue_step, submit_to_queue
from cspsched.simulate.kernel.each.ranked import charge_levels, ranked_step, submit_ranked
from cspsched.simulate.kernel.each.rules import EachRules, Loop, Mode
from cspsched.simulate.kernel.each.sglang import sglang_step
from cspsched.simulate.kernel.each.timed import timed_step
from cspsched.simulate.kernel.each.together import conclude_together, regroup
from cspsched.simulate.kernel.each.v0_chunked import chunked_step
from cspsched.simulate.kernel.each.vidur import may_repeat, repeat, take_back, vidur_step
from cspsched.simulate.kernel.each.vllm import submit_to_vllm, vllm_step
from cspsched.simulate.kernel.jit import outer
from cspsched.simulate.kernel.layout import FINISHED, LOG_FULL, Kernel
from cspsched.simulate.kernel.progress import goes_on, has_room

LEVELS = int(Mode.LEVELS)


@outer
def run_queue(k: Kernel) -> int:
    """Run `Loop.QUEUE` until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_queue(k)
        regroup(k)
        begin(k)
        queue_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_timed(k: Kernel) -> int:
    """Run `Loop.QUEUE` with prefills at times until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_queue(k)
        regroup(k)
        begin(k)
        timed_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_sglang(k: Kernel) -> int:
    """Run `Loop.QUEUE` as SGLang does until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_queue(k)
        regroup(k)
        begin(k)
        sglang_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_capacity(k: Kernel) -> int:
    """Run `Loop.QUEUE` with capacity first until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_queue(k)
        regroup(k)
        begin(k)
        capacity_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_ranked(k: Kernel) -> int:
    """Run `Loop.RANKED` until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_ranked(k)
        if k.now.mode == LEVELS:
            charge_levels(k)
        begin(k)
        ranked_step(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_family(k: Kernel) -> int:
    """Run `Loop.FAMILY` until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_family(k)
        regroup(k)
        begin(k)
        family_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_v0_chunked(k: Kernel) -> int:
    """Run `Loop.FAMILY` with vLLM V0's chunks until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_family(k)
        regroup(k)
        begin(k)
        chunked_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_vidur(k: Kernel) -> int:
    """Run `Loop.FAMILY` as Vidur does until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_family(k)
        take_back(k)
        if may_repeat(k) and repeat(k):
            continue
        begin(k)
        vidur_step(k)
        answer = conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_vllm(k: Kernel) -> int:
    """Run `Loop.VLLM` until all is done, a log is full, or something is wrong."""
    while goes_on(k):
        if not has_room(k):
            return LOG_FULL
        submit_to_vllm(k)
        regroup(k)
        begin(k)
        vllm_step(k)
        answer = conclude_ahead(k) if k.now.decides_ahead else conclude_together(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_decided(k: Kernel) -> int:
    """Run `Loop.DECIDED` until all is done, a log is full, something is wrong, or there is a question."""
    while goes_on(k):
        if not k.now.stage and not k.now.has_answer:
            if not has_room(k):
                return LOG_FULL
            submit_to_decided(k)
            begin(k)
        question = decided_step(k)
        if question:
            return question
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


LOOPS = {
    Loop.QUEUE: run_queue, Loop.RANKED: run_ranked, Loop.FAMILY: run_family, Loop.VLLM: run_vllm,
    Loop.DECIDED: run_decided,
}  # fmt: skip
SPECIAL_LOOPS = {
    Mode.WAITING_RATIO: run_timed, Mode.DECODE_STEPS: run_timed, Mode.SGLANG: run_sglang,
    Mode.MAX_UTILIZATION: run_capacity, Mode.EQUAL_PROGRESS: run_capacity, Mode.CHUNKED: run_v0_chunked,
    Mode.PADDED: run_vidur, Mode.STALL_FREE: run_vidur, Mode.WHOLE: run_vidur,
}  # fmt: skip
"""Loops for some modes alone, since each compiles only what it needs."""


def loop_of(rules: EachRules) -> Callable[[Kernel], int]:
    """The loop that runs the rules."""
    return SPECIAL_LOOPS.get(rules.mode, LOOPS[rules.loop])
