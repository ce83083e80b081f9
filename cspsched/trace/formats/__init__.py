"""The known trace formats: one file a family, one table of all."""

from __future__ import annotations

from cspsched.trace.format import TraceFormat
from cspsched.trace.formats.benchmarks import AIPERF, INFERENCE_PERF, INFERENCE_PERF_OLD, SGLANG, VLLM
from cspsched.trace.formats.hashed import BAILIAN, MOONCAKE
from cspsched.trace.formats.native import NATIVE
from cspsched.trace.formats.published import (
    AZURE,
    BURSTGPT,
    LLMSERVINGSIM,
    LLMSERVINGSIM_RUN,
    SERVEGEN,
    SPLITWISE,
    VIDUR,
)
from cspsched.trace.formats.sharegpt import SHAREGPT

FORMATS: tuple[TraceFormat, ...] = (
    NATIVE,
    AZURE,
    BURSTGPT,
    BAILIAN,
    MOONCAKE,
    VIDUR,
    SPLITWISE,
    SERVEGEN,
    LLMSERVINGSIM,
    LLMSERVINGSIM_RUN,
    SGLANG,
    VLLM,
    AIPERF,
    INFERENCE_PERF,
    INFERENCE_PERF_OLD,
    SHAREGPT,
)
"""In the order in which a file is held against them: what asks for more stands first."""
