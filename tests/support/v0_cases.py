"""Settings of vLLM V0 and its family at random, and the limits that their twins get."""

from __future__ import annotations

from hypothesis import strategies as st

from cspsched.policies.vllm_v0 import VllmV0Settings
from cspsched.policies.vllm_v1 import QueueOrder
from cspsched.problem.instance import Instance

seqs = st.integers(1, 8)
watermarks = st.sampled_from([0.0, 0.01, 0.1, 0.3])
budgets = st.none() | st.integers(1, 60)
v0_settings = st.builds(
    VllmV0Settings,
    max_num_seqs=seqs,
    max_num_batched_tokens=budgets,
    delay_factor=st.sampled_from([0.0, 0.0, 0.5, 2.0]),
    watermark=watermarks,
    policy=st.sampled_from(QueueOrder),
)

v0_chunked_settings = st.builds(
    VllmV0Settings,
    enable_chunked_prefill=st.just(True),
    max_num_seqs=seqs,
    max_num_batched_tokens=st.integers(1, 60),
    watermark=watermarks,
    max_num_partial_prefills=st.integers(1, 3),
    max_long_partial_prefills=st.integers(1, 3),
    long_prefill_token_threshold=st.integers(1, 20),
)


def limits_of(instance: Instance, max_num_seqs: int, own_tokens: int | None) -> dict[str, int]:
    """Limits of a twin: whichever are tighter."""
    limits = instance.limits
    tokens = min(limits.max_batch_tokens, own_tokens or limits.max_batch_tokens)
    longest = (own_tokens or 10**9) if instance.switches.chunked_prefill else tokens
    seqs = min(max_num_seqs, limits.max_batch_requests, limits.max_batch_tokens)
    return {"max_tokens": tokens, "max_seqs": seqs, "longest_prompt": longest}
