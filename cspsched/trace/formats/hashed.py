"""Traces with a hash for each block of the prompt: Mooncake (and Dynamo, AIPerf) and Qwen-Bailian.

Sources: kvcache-ai/Mooncake 3b5a594, FAST25-release (timestamp in ms, blocks of 512 tokens; Dynamo's data
generator and AIPerf's `mooncake_trace` write the same); alibaba-edu/qwen-bailian-usagetraces-anon (timestamp
in s, blocks of 16 tokens, `len(hash_ids) == ceil(input_length / 16)`; fields as AIPerf's `bailian_trace`
reads them). Both name their fields alike; `chat_id` tells them apart, or how many hashes a prompt has.
"""

from __future__ import annotations

from cspsched.trace.cells import TimeUnit
from cspsched.trace.format import Layout, PrefixHashes, TraceFormat

BAILIAN = TraceFormat(
    name="bailian",
    title="Qwen-Bailian",
    layout=Layout.LINES,
    id_column="chat_id",
    arrival_column="timestamp",
    arrival_unit=TimeUnit.S,
    prompt_column="input_length",
    output_column="output_length",
    prefix_hashes=PrefixHashes(column="hash_ids", block_tokens=16),
    marks=("chat_id",),
)

MOONCAKE = TraceFormat(
    name="mooncake",
    title="Mooncake and Dynamo",
    layout=Layout.LINES,
    arrival_column="timestamp",
    arrival_unit=TimeUnit.MS,
    prompt_column="input_length",
    output_column="output_length",
    prefix_hashes=PrefixHashes(column="hash_ids", block_tokens=512),
)
