"""Where every built-in policy comes from, which engine runs it, and what its settings mean."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import StrEnum
from fractions import Fraction
from itertools import pairwise
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, get_args, get_type_hints

from cspsched.policies.base import make_policy
from cspsched.policies.expected import TRUE_LENGTHS, PredictionSettings
from cspsched.problem.cost import CostModel
from cspsched.problem.instance import Instance, Limits
from cspsched.problem.request import Request
from cspsched.simulate import Policy
from cspsched.simulate.kernel.rules import HasKernelRules
from cspsched.simulate.watch import is_ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a policy follows."""

    program: str
    """Program or paper."""
    version: str
    """Release, commit or year that the rules were written down from."""
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One setting of a policy."""

    name: str
    default: Any
    """None where the instance decides."""
    values: tuple[str, ...]
    """The words to choose from, if it is a choice."""
    meaning: str
    """Empty if its class says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One policy of the catalogue."""

    name: str
    follows: str
    """First line of the docstring of its class."""
    source: Source | None
    """None if a policy of another package does not say."""
    engine: str
    """`compiled` if it compiles with its default settings, else `plain`."""
    settings: tuple[Setting, ...]


_ARXIV = "https://arxiv.org/abs/"
_SARATHI = Source(
    program="sarathi-serve", version="96f9911", url="https://github.com/microsoft/sarathi-serve"
)
_VIDUR = Source(program="Vidur", version="7d47513", url="https://github.com/microsoft/vidur")
SOURCES: dict[str, Source] = {
    "vllm": Source(program="vLLM V1", version="0.33.0", url="https://github.com/vllm-project/vllm"),
    "vllm-v0": Source(program="vLLM V0", version="0.9.2", url="https://github.com/vllm-project/vllm"),
    "sarathi": _SARATHI,
    "sarathi-vllm": _SARATHI,
    "orca": _SARATHI,
    "faster-transformer": _SARATHI,
    "simple-chunking": _SARATHI,
    "sglang": Source(program="SGLang", version="0.5.23", url="https://github.com/sgl-project/sglang"),
    "tensorrt-llm": Source(
        program="TensorRT-LLM", version="no release named", url="https://github.com/NVIDIA/TensorRT-LLM"
    ),
    "lightllm": Source(
        program="LightLLM", version="no release named", url="https://github.com/ModelTC/lightllm"
    ),
    "tgi": Source(
        program="Text Generation Inference",
        version="v3",
        url="https://github.com/huggingface/text-generation-inference",
    ),
    "mc-sf": Source(program="MC-SF", version="2025", url=f"{_ARXIV}2502.07115"),
    "smallest-volume": Source(program="Smallest Volume First", version="2026", url=f"{_ARXIV}2606.22327"),
    "sorted-f": Source(program="Sorted-F", version="2025", url=f"{_ARXIV}2508.06133"),
    "sjf": Source(program="vllm-ltr", version="2024", url="https://github.com/hao-ai-lab/vllm-ltr"),
    "srpt": Source(program="vllm-ltr", version="2024", url="https://github.com/hao-ai-lab/vllm-ltr"),
    "trail": Source(program="TRAIL", version="2024", url=f"{_ARXIV}2410.01035"),
    "fastserve": Source(program="FastServe", version="2023", url="https://github.com/LLMServe/FastServe"),
    "vtc": Source(program="VTC", version="2024", url="https://github.com/Ying1123/VTC-artifact"),
    "niyama": Source(program="Niyama", version="2025", url=f"{_ARXIV}2503.22562"),
    "infermax": Source(program="InferMax", version="2024", url=f"{_ARXIV}2411.07447"),
    "vidur-vllm": _VIDUR,
    "vidur-sarathi": _VIDUR,
    "vidur-orca": _VIDUR,
    "vidur-faster-transformer": _VIDUR,
    "vidur-lightllm": _VIDUR,
}
"""Of every built-in policy. One of another package may have an attribute `source` of this kind."""

READS_OUTPUTS = frozenset(
    (
        "sglang", "tensorrt-llm", "lightllm", "tgi", "mc-sf", "smallest-volume", "sorted-f", "sjf", "srpt",
        "trail", "vtc", "vidur-lightllm",
    )
)  # fmt: skip
"""Built-in policies that, with default settings, read how many tokens an unfinished request will generate: to
order requests, or to set memory aside where a request declares no limit."""


def lengths_known_to(policy: Policy, instance: Instance) -> str | None:
    """What a policy takes for outputs before they are generated; None if it does not look, or is not ours."""
    if not is_ours(type(policy)):
        return None
    settings = getattr(policy, "settings", None)
    if isinstance(settings, PredictionSettings):
        return settings.stated
    rules = policy.kernel_rules(instance) if isinstance(policy, HasKernelRules) else None
    if rules is None or rules.expected_tokens is None:
        return None
    is_true = rules.expected_tokens is instance.columns.output_tokens
    return TRUE_LENGTHS if is_true else "max_tokens of the trace"


def describe_policy(name: str) -> Entry:
    """What there is to know about a policy.

    Raises
    ------
    UsageError
        If there is none of that name, or it cannot be made with its default settings.
    """
    policy = make_policy(name)
    source = SOURCES.get(name, getattr(policy, "source", None))
    settings_type = getattr(policy, "settings_type", None)
    return Entry(
        name=name,
        follows=(type(policy).__doc__ or "").strip().partition("\n")[0],
        source=source if isinstance(source, Source) else None,
        engine="compiled" if _runs_in_kernel(policy) else "plain",
        settings=() if settings_type is None else tuple(_settings(settings_type)),
    )


def _runs_in_kernel(policy: Policy) -> bool:
    """Whether the kernel knows its default rules, under limits that do not bind."""
    if not isinstance(policy, HasKernelRules):
        return False
    request = Request(request_id="r0", arrival_ns=0, prompt_tokens=1, output_tokens=1)
    ample = 1_000_000
    limits = Limits(
        kv_blocks=ample,
        block_tokens=16,
        max_batch_tokens=ample,
        max_batch_requests=ample,
        max_model_len=ample,
    )
    cost = CostModel(name="unit", step=Fraction(1))
    return policy.kernel_rules(Instance(requests=(request,), limits=limits, cost=cost)) is not None


def _settings(settings_type: Any) -> Iterator[Setting]:
    defaults, hints, meanings = settings_type(), get_type_hints(settings_type), _meanings(settings_type)
    for field in fields(settings_type):
        yield Setting(
            name=field.name,
            default=getattr(defaults, field.name),
            values=_choices(hints[field.name]),
            meaning=meanings.get(field.name, ""),
        )


def _choices(hint: Any) -> tuple[str, ...]:
    if isinstance(hint, UnionType):
        hint = next(option for option in get_args(hint) if option is not NoneType)
    return tuple(hint) if isinstance(hint, type) and issubclass(hint, StrEnum) else ()


def _meanings(settings_type: type) -> dict[str, str]:
    """The text below each field of a class and its bases; none where the source is not at hand."""
    meanings: dict[str, str] = {}
    for base in reversed(settings_type.__mro__[:-1]):
        try:
            tree = ast.parse(dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        for field, text in pairwise(_body_of(tree)):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                    value=ast.Constant(value=str(meaning))
                ):
                    meanings[name] = inspect.cleandoc(meaning).replace("\n", " ")
    return meanings


def _body_of(tree: ast.Module) -> list[ast.stmt]:
    """Statements of the class that a module begins with."""
    return tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
