"""Compiled: the duration of the batch at hand."""

from __future__ import annotations

from cspsched.compiled.batch_time import batch_time_by
from cspsched.compiled.jit import inner
from cspsched.simulate.kernel.layout import Kernel


@inner
def feature(k: Kernel, position: int, num_decodes: int) -> int:
    """What a term is over, in the order of `BatchFeatures`."""
    now = k.now
    if position == 0:
        return int(now.prefill_tokens + num_decodes)
    if position == 1:
        return int(now.attention)
    if position == 2:
        return int(now.prefill_tokens)
    if position == 3:
        return int(now.prefill_context)
    if position == 4:
        return int(now.decode_context) if num_decodes else 0
    if position == 5:
        return int(now.num_generating + num_decodes)
    return int(now.num_prefills) if position == 6 else num_decodes


_time_ns = batch_time_by(feature)


@inner
def batch_time_ns(k: Kernel, num_decodes: int) -> int:
    """Duration of the batch with so many decodes."""
    return _time_ns(k, k.prices, num_decodes)
