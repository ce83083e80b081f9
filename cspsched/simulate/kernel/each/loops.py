"""Compiled: a loop over decisions for each kind of policy. This module and those it imports load numba."""

from __future__ import annotations

from cspsched.simulate.kernel.each.ahead import conclude_ahead
from cspsched.simulate.kernel.each.batch import begin, conclude, has_room
from cspsched.simulate.kernel.each.decided import decided_step, submit_to_decided
from cspsched.simulate.kernel.each.family import family_step
from cspsched.simulate.kernel.each.family_parts import submit_to_family
from cspsched.simulate.kernel.each.layout import DECIDES_AHEAD, HAS_ANSWER, MODE, MOST_IN_BATCH, STAGE
from cspsched.simulate.kernel.each.queue_run import queue_step, submit_to_queue
from cspsched.simulate.kernel.each.ranked import charge_levels, ranked_step, submit_ranked
from cspsched.simulate.kernel.each.rules import Loop, Mode
from cspsched.simulate.kernel.each.vidur import take_back
from cspsched.simulate.kernel.each.vllm import submit_to_vllm, vllm_step
from cspsched.simulate.kernel.jit import outer
from cspsched.simulate.kernel.layout import FINISHED, LOG_FULL, UNFINISHED, Kernel

LEVELS = int(Mode.LEVELS)


@outer
def run_queue(k: Kernel) -> int:
    """Run `Loop.QUEUE` until all is done, a log is full, or something is wrong."""
    while k.now[UNFINISHED]:
        if not has_room(k):
            return LOG_FULL
        submit_to_queue(k)
        begin(k)
        queue_step(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_ranked(k: Kernel) -> int:
    """Run `Loop.RANKED` until all is done, a log is full, or something is wrong."""
    while k.now[UNFINISHED]:
        if not has_room(k):
            return LOG_FULL
        submit_ranked(k)
        if k.now[MODE] == LEVELS:
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
    while k.now[UNFINISHED]:
        if not has_room(k):
            return LOG_FULL
        submit_to_family(k)
        if k.now[MOST_IN_BATCH]:
            take_back(k)
        begin(k)
        family_step(k)
        answer = conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_vllm(k: Kernel) -> int:
    """Run `Loop.VLLM` until all is done, a log is full, or something is wrong."""
    while k.now[UNFINISHED]:
        if not has_room(k):
            return LOG_FULL
        submit_to_vllm(k)
        begin(k)
        vllm_step(k)
        answer = conclude_ahead(k) if k.now[DECIDES_AHEAD] else conclude(k)
        if answer != FINISHED:
            return answer
    return FINISHED


@outer
def run_decided(k: Kernel) -> int:
    """Run `Loop.DECIDED` until all is done, a log is full, something is wrong, or there is a question."""
    while k.now[UNFINISHED]:
        if not k.now[STAGE] and not k.now[HAS_ANSWER]:
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
