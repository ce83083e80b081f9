"""Tables of aiconfigurator (ai-dynamo/aiconfigurator, aic-core systems/data), Parquet or CSV, milliseconds.

They hold kernels by shape, not by model: the shapes of a model on one tensor-parallel rank are looked up, and
interpolated where the grid lacks them (`GemmGrid`). Elementwise kernels are in none of the tables: their rows
are derived from the memory bandwidth, and say so in `backend`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cspsched.costs.devices import Device
from cspsched.costs.fit import FloatArray
from cspsched.costs.importers.aiconfigurator_check import check_table
from cspsched.costs.importers.attention_heads import PROMPT_LENGTH, attention_of_heads, grid_of
from cspsched.costs.importers.collectives import (
    PROJECT,
    exchange,
    link_collectives,
    link_sending,
    measured_collectives,
    measured_sending,
)
from cspsched.costs.importers.gemm_grid import GemmGrid, ceil_share
from cspsched.costs.importers.source import US_PER_MS, Source
from cspsched.costs.models import LlmModel
from cspsched.costs.parallelism import ONE_GPU, Parallelism
from cspsched.costs.rows import PARQUET, check_rows, make_rows
from cspsched.costs.weights import FORMATS, PLAIN
from cspsched.errors import InputError
from cspsched.problem.cost import IntArray

if TYPE_CHECKING:
    import pandas as pd

PACKAGE = "aiconfigurator_core"
TABLES = {
    "gemm": "gemm/vllm/*/gemm_perf",
    "context": "attention/vllm/*/context_attention_perf",
    "generation": "attention/vllm/*/generation_attention_perf",
    "mla_context": "mla/vllm/*/mla_context_module_perf",
    "mla_generation": "mla/vllm/*/mla_generation_module_perf",
    "moe": "moe/vllm/*/moe_perf",
    "nccl": "comm/nccl/*/nccl_perf",
    "custom": "comm/vllm/*/custom_allreduce_perf",
}
"""Where the package keeps the tables of a system, below `systems/data/SYSTEM`."""
DTYPES = {
    "gemm_dtype": "bfloat16", "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16",
    "mla_dtype": "bfloat16", "moe_dtype": "bfloat16", "nccl_dtype": "half", "allreduce_dtype": "bfloat16",
    "beam_width": "1", "window_size": "0",
}  # fmt: skip
"""What is taken of tables that hold more, unless something else is asked for: 16-bit kernels without beams
and sliding windows."""
GEMM_DTYPES = {"bf16": "bfloat16", "fp8": "fp8", "fp8-block": "fp8_block", "nvfp4": "nvfp4"}
EXPERT_DTYPES = GEMM_DTYPES | {"int4": "int4_wo", "mxfp4": "w4a16_mxfp4"}
"""How the tables call the formats of weights."""
WEIGHT_ONLY = ("int4",)
"""Formats that a kernel unpacks to 16 bits on its way to the tensor cores; no table has their GEMMs."""
MEASURED_MLA = {(7168, 1536, 512, 128, 64, 128)}
"""Hidden size and sizes of latent attention whose whole block was measured: those of DeepSeek V3."""
PLAIN_OPERATORS = ("router", "lm_head")
"""Matrix products that checkpoints keep in 16 bits."""
KV_DTYPES = {"bf16": "bfloat16", "fp8": "fp8"}
ROUTING = "power_law_1.01"
"""How tokens choose among many experts: between `balanced` and `power_law_1.2`, the two ends of the table."""
FEW_EXPERTS = 16
"""Up to which experts share the tokens evenly: those of Mixtral do (Jiang et al., arXiv 2401.04088, section
5), and by the power law one of eight would get more than a third of all."""
GEMM_LAUNCH_US = 2.0
"""Least time of a derived matrix product."""
ACHIEVED_BANDWIDTH = 0.8
"""Share of the peak bandwidth assumed for elementwise kernels (an assumption, not measured)."""
LAUNCH_US = {
    "rmsnorm": 1.85,
    "rope": 2.18,
    "silu_mul": 2.59,
    "shared_silu_mul": 2.59,
    "kv_cache_write": 2.0,
    "qk_norm": 2.0,
}
"""Least time of an elementwise kernel: one token on an RTX 4090, vLLM 0.19 (LLMServingSim's dense table; the
two that it lacks are set to its smallest)."""


@dataclass(frozen=True)
class AicTables:
    """The tables of one system that were found, by kind."""

    tables: dict[str, Source]
    grids: dict[str, GemmGrid] = field(default_factory=dict)
    """Those asked for so far, by format of the weights."""

    def gemm_grid(self, weights: str = PLAIN) -> GemmGrid:
        """The GEMM table of a format of weights, ready to be asked for shapes."""
        if weights not in self.grids:
            self.grids[weights] = GemmGrid(self.table("gemm", gemm_dtype=GEMM_DTYPES[weights]))
        return self.grids[weights]

    @classmethod
    def read(cls, paths: Sequence[Path], *, checked: bool = False) -> AicTables:
        """Read files of one system, recognised by their columns.

        Parameters
        ----------
        checked
            Whether the rows are known to make sense, as those of the installed package are: looking at each
            takes longer than all the rest.

        Raises
        ------
        InputError
            If a file is none of aiconfigurator's, or the files are of different devices.
        """
        tables: dict[str, Source] = {}
        for path in paths:
            source = Source.read(path)
            kind = _kind(source)
            if not checked:
                check_table(source, kind)
            devices = set(source.frame["device"].astype(str).unique())
            known = {str(name) for table in tables.values() for name in table.text("device")[:1]}
            if len(devices | known) > 1:
                raise InputError(f"{path} is of {', '.join(sorted(devices | known))}, expected one device")
            if kind in tables:
                raise InputError(f"{path} and {tables[kind].path} are both {kind} tables, expected one")
            tables[kind] = source
        return cls(tables)

    def rows(
        self,
        model: LlmModel,
        device: Device,
        parallelism: Parallelism = ONE_GPU,
    ) -> pd.DataFrame:
        """Rows of a model on one rank of so many.

        Groups of data parallelism are taken to process as many tokens as each other in every batch.

        Raises
        ------
        InputError
            If a table is missing that the model needs, or lacks the model's shapes.
        """
        import pandas as pd

        model.weights_per_rank(parallelism)  # refuses ranks that cannot share the heads or experts
        tensor_parallel = parallelism.tensor
        parts = [self._gemms(model, tensor_parallel), self.attention(model, tensor_parallel)]
        tokens = parts[0]["num_tokens"].unique()
        parts.append(elementwise_rows(model, device, tensor_parallel, tokens[tokens > 0]))
        if model.moe is not None:
            parts.append(self._experts(model, parallelism))
            if parallelism.data > 1:
                groups = self.collectives(device, parallelism.data)
                parts.append(exchange(groups, model, parallelism, tokens[tokens > 0]))
        if tensor_parallel > 1:
            parts.append(self.collectives(device, tensor_parallel))
        if parallelism.pipeline > 1:
            parts.append(
                link_sending(device.link, tensor_parallel)
                if device.link
                else measured_sending(self.table("nccl"), tensor_parallel)
            )
        rows = pd.concat(parts, ignore_index=True)
        rows["model"], rows["dtype"] = model.name, model.weights
        check_rows(rows, f"{self.tables['gemm'].path} (as rows)")
        return rows

    def table(self, kind: str, **dtypes: str) -> Source:
        """The rows of some kernels of a table that has to be there.

        Parameters
        ----------
        dtypes
            Values of columns, where they are others than those of `DTYPES`.

        Raises
        ------
        InputError
            If the table is missing or has no such rows.
        """
        if kind not in self.tables:
            raise InputError(
                f"no {kind} table among {', '.join(str(one.path) for one in self.tables.values())}; "
                "give that file too"
            )
        source = self.tables[kind]
        keep = np.ones(len(source.frame), dtype=np.bool_)
        for column, value in (DTYPES | dtypes).items():
            if source.has(column):
                keep &= (source.frame[column].astype(str) == value).to_numpy()
                if not keep.any():
                    found = ", ".join(sorted(source.frame[column].astype(str).unique()))
                    raise InputError(f"{source.path}: no rows of {column} {value}; there are {found}")
        return source.where(keep)

    def _gemms(self, model: LlmModel, ranks: int) -> pd.DataFrame:
        import pandas as pd

        parts = []
        for operator, (n, k) in gemm_shapes(model, ranks).items():
            weights = PLAIN if operator in PLAIN_OPERATORS else model.weights
            m, times_us, how = self._gemm_us(weights, n, k)
            columns = {"op": operator, "num_tokens": m, "t_us": times_us, "kernel_impl": how, "tp": ranks}
            parts.append(make_rows(columns | {"backend": PROJECT}))
        return pd.concat(parts, ignore_index=True)

    def _gemm_us(self, weights: str, n: int, k: int) -> tuple[IntArray, FloatArray, str]:
        """Rows m, microseconds at each, and how they came about, for weights of a format."""
        if weights == PLAIN:
            return self.gemm_grid().times_us(n, k)
        if weights in WEIGHT_ONLY:
            m, plain_us, how = self.gemm_grid().times_us(n, k)
            return m, weight_only_us(m, plain_us, weights), f"{weights} derived from 16 bit, {how}"
        if weights not in GEMM_DTYPES:
            known = ", ".join((*GEMM_DTYPES, *WEIGHT_ONLY))
            raise InputError(f"no GEMMs with {weights} weights were measured; known are {known}")
        m, times_us, how = self.gemm_grid(weights).times_us(n, k)
        return m, times_us, f"{weights} {how}"

    def attention(self, model: LlmModel, ranks: int) -> pd.DataFrame:
        """Rows of prefills alone and decodes alone on one of so many ranks; errors as of `rows`."""
        import pandas as pd

        prefill, how = self._attention_of("context", PROMPT_LENGTH, model, ranks)
        columns = {"op": "attn_prefill", "n_seq": prefill["batch_size"], "kv": 0}
        columns |= {"chunk": prefill[PROMPT_LENGTH]}
        parts = [columns | {"t_us": prefill["t_us"], "kernel_impl": how}]
        decode, how = self._attention_of("generation", "step", model, ranks)
        # The kernel reads `step + 1` entries, of which the last is the token's own.
        total = decode["batch_size"] * decode["step"]
        columns = {"op": "attn_decode", "n_seq": decode["batch_size"], "kv": decode["step"]}
        columns |= {"kv_total": total, "kv_max": decode["step"]}
        parts.append(columns | {"t_us": decode["t_us"], "kernel_impl": how})
        return pd.concat(
            [make_rows(part | {"tp": ranks, "backend": PROJECT}) for part in parts], ignore_index=True
        )

    def _attention_of(self, kind: str, length: str, model: LlmModel, ranks: int) -> tuple[pd.DataFrame, str]:
        """Attention rows of a layer, on average over those with a sliding window and those without."""
        if model.mla is not None:
            return self._latent_attention(kind, length, model, ranks)
        shape = (model.num_heads // ranks, model.kv_heads_per_rank(ranks), model.head_dim)
        dtypes = {"kv_cache_dtype": KV_DTYPES[model.kv_cache]}
        whole, how = attention_of_heads(self.table(kind, **dtypes), length, *shape)
        if model.sliding_window is None:
            return whole, how
        windowed, of_window = attention_of_heads(
            self.table(kind, **dtypes, window_size=str(model.sliding_window)), length, *shape
        )
        share = model.num_sliding_layers / model.num_layers
        points = ["batch_size", length]
        both = whole.set_index(points) * (1 - share) + windowed.set_index(points) * share
        how = f"{how}; {share:.0%} of layers with a window of {model.sliding_window}: {of_window}"
        return both.dropna().reset_index(), how

    def _latent_attention(
        self, kind: str, length: str, model: LlmModel, ranks: int
    ) -> tuple[pd.DataFrame, str]:
        """Rows of the whole block of latent attention, with its projections."""
        assert model.mla is not None
        shape = (model.hidden_size, *astuple(model.mla))
        if shape not in MEASURED_MLA or model.weights not in GEMM_DTYPES:
            raise InputError(
                f"latent attention of {model.name} ({model.weights}) was not measured, only that of "
                f"deepseek-v3 with weights in {', '.join(GEMM_DTYPES)}"
            )
        dtypes = {"kv_cache_dtype": KV_DTYPES[model.kv_cache], "gemm_type": GEMM_DTYPES[model.weights]}
        source = self.table(f"mla_{kind}", **dtypes)
        rows = source.where(source.counts("num_heads", 1) == model.num_heads // ranks)
        if not len(rows.frame):
            raise InputError(f"{source.path} has no attention of {model.num_heads // ranks} heads")
        return grid_of(rows, length).reset_index(), "measured with its projections"

    def _experts(self, model: LlmModel, parallelism: Parallelism) -> pd.DataFrame:
        moe = model.moe
        assert moe is not None
        weights = moe.weights or model.weights
        source = self.table("moe", moe_dtype=EXPERT_DTYPES[weights])
        shape = {
            "hidden_size": model.hidden_size, "inter_size": moe.expert_intermediate_size,
            "topk": moe.experts_per_token, "num_experts": moe.num_experts,
            "moe_tp_size": parallelism.expert_slices, "moe_ep_size": parallelism.expert_groups,
        }  # fmt: skip
        keep = np.logical_and.reduce([source.counts(name) == value for name, value in shape.items()])
        routing = "balanced" if moe.num_experts <= FEW_EXPERTS else ROUTING
        rows = source.where(keep & (source.text("distribution") == routing))
        if not len(rows.frame):
            raise InputError(
                f"{source.path} has no rows of the experts of {model.name} ({weights}) with "
                f"{parallelism.title}"
            )
        # The tokens of all groups meet at the experts.
        own = rows.counts("num_tokens", 1) / parallelism.data
        columns = {"num_tokens": own, "t_us": rows.times_us("latency", US_PER_MS)}
        names = {"op": "experts", "kernel_impl": f"fused MoE {weights}, {routing}", "backend": PROJECT}
        whole = make_rows(columns | names | {"tp": parallelism.tensor})
        whole = whole[whole["num_tokens"] % 1 == 0]
        return whole.astype({"num_tokens": np.int64})

    def collectives(self, device: Device, ranks: int) -> pd.DataFrame:
        """Collectives over so many ranks: measured, or by formula where the device names its link.

        Raises
        ------
        InputError
            If there is no table of them, or no all-reduce over so many ranks.
        """
        if device.link is not None:
            return link_collectives(device.link, ranks)
        kinds = [kind for kind in ("custom", "nccl") if kind in self.tables]
        return measured_collectives({kind: self.table(kind) for kind in kinds}, ranks)


def tables_for(model: LlmModel, parallelism: Parallelism) -> list[str]:
    """Kinds of tables that a model may need, which is all that has to be read."""
    attention = ("context", "generation") if model.mla is None else ("mla_context", "mla_generation")
    kinds = ["gemm", *attention] + (["moe"] if model.moe is not None else [])
    return kinds + (["nccl", "custom"] if parallelism != ONE_GPU else [])


def installed_tables(system: str, kinds: Iterable[str] = TABLES) -> list[Path]:
    """Newest vLLM tables of a system such as `h200_sxm` in an installed aiconfigurator-core.

    Parameters
    ----------
    kinds
        Of `TABLES`, as far as the system has them.

    Raises
    ------
    InputError
        If the package is not installed, or has no such system.
    """
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise InputError(
            "aiconfigurator-core is not installed: run pip install 'cspsched[aic]', or give table files"
        )
    root = Path(spec.origin).parent / "systems" / "data"
    if not (root / system).is_dir():
        known = sorted(path.name for path in root.iterdir() if path.is_dir())
        raise InputError(f"aiconfigurator-core has no system {system!r}; known: {', '.join(known)}")
    patterns = (f"{TABLES[kind]}{PARQUET}" for kind in kinds)
    found = [sorted((root / system).glob(pattern), key=_version) for pattern in patterns]
    return [paths[-1] for paths in found if paths]


def gemm_shapes(model: LlmModel, tensor_parallel: int = 1) -> dict[str, tuple[int, int]]:
    """Shapes (n output, k input features) of the matrix products of one rank, by operator."""
    q_size = model.num_heads // tensor_parallel * model.head_dim
    kv_size = model.kv_heads_per_rank(tensor_parallel) * model.head_dim
    shapes = {}
    if model.mla is None:
        shapes["qkv_proj"] = (q_size + 2 * kv_size, model.hidden_size)
        shapes["o_proj"] = (model.hidden_size, q_size)
    if model.num_expert_layers < model.num_layers:
        width = ceil_share(model.intermediate_size, tensor_parallel)
        shapes["gate_up"] = (2 * width, model.hidden_size)
        shapes["down"] = (model.hidden_size, width)
    if model.moe is not None:
        shapes["router"] = (model.moe.num_experts, model.hidden_size)
        if model.moe.num_shared_experts:
            shared = model.moe.num_shared_experts * model.moe.expert_intermediate_size
            width = ceil_share(shared, tensor_parallel)
            shapes["shared_gate_up"] = (2 * width, model.hidden_size)
            shapes["shared_down"] = (model.hidden_size, width)
    shapes["lm_head"] = (ceil_share(model.vocab_size, tensor_parallel), model.hidden_size)
    return shapes


def weight_only_us(m: IntArray, plain_us: FloatArray, weights: str) -> FloatArray:
    """Times of a matrix product whose weights are unpacked to 16 bits, derived from the 16-bit kernel's.

    Reading fewer bytes takes that share of the time that 16-bit weights take for one row; from there on the
    tensor cores decide, at the best rate of the 16-bit kernel (Frantar et al., MARLIN, arXiv 2408.11743,
    section 5: close to both limits). At least a launch.
    """
    share = float(FORMATS[weights].bytes_per_weight / FORMATS[PLAIN].bytes_per_weight)
    us_per_row = float((plain_us / m).min())
    times: FloatArray = np.maximum(np.maximum(plain_us[0] * share, us_per_row * m), GEMM_LAUNCH_US)
    return times


def elementwise_rows(
    model: LlmModel, device: Device, tensor_parallel: int, tokens: np.typing.NDArray[np.int64]
) -> pd.DataFrame:
    """Derived, not measured: bytes moved at `ACHIEVED_BANDWIDTH` of the peak, at least a launch."""
    import pandas as pd

    q_size = model.num_heads // tensor_parallel * model.head_dim
    kv_size = model.kv_heads_per_rank(tensor_parallel) * model.head_dim
    elements = {
        "rmsnorm": 4 * model.hidden_size, "rope": 2 * (q_size + kv_size), "kv_cache_write": 4 * kv_size,
        "silu_mul": 3 * ceil_share(model.mlp_width, tensor_parallel),
    }  # fmt: skip
    if model.moe is not None:  # the experts' is inside their fused kernel
        del elements["silu_mul"]
        dense, shared = model.intermediate_size, model.moe.num_shared_experts
        if model.moe.num_dense_layers:
            elements["silu_mul"] = 3 * ceil_share(dense, tensor_parallel)
        if shared:
            width = shared * model.moe.expert_intermediate_size
            elements["shared_silu_mul"] = 3 * ceil_share(width, tensor_parallel)
    if model.mla is not None:  # inside the measured block of attention
        del elements["rope"], elements["kv_cache_write"]
    if model.qk_norm:
        elements["qk_norm"] = 2 * (q_size + kv_size)
    us_per_element = model.dtype_bytes / (ACHIEVED_BANDWIDTH * device.memory_bandwidth_bytes_per_s) * 1e6
    parts = [
        make_rows(
            {
                "op": operator, "num_tokens": tokens, "tp": tensor_parallel, "backend": "derived",
                "t_us": np.maximum(size * us_per_element * tokens, LAUNCH_US[operator]),
                "kernel_impl": "bytes at 80 % of the bandwidth",
            }
        )
        for operator, size in elements.items()
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _kind(source: Source) -> str:
    if source.has("m", "n", "k", "latency"):
        return "gemm"
    if source.has("num_experts", "moe_tp_size", "latency"):
        return "moe"
    for kind, dtype in (("nccl", "nccl_dtype"), ("custom", "allreduce_dtype")):
        if source.has(dtype, "num_gpus", "message_size", "latency"):
            return kind
    if source.has("batch_size", "isl", "step", "num_heads", "latency"):
        name = "context" if (source.counts("step") == 0).all() else "generation"
        return f"mla_{name}" if source.has("mla_dtype") else name
    raise source.foreign(PROJECT)


def _version(path: Path) -> tuple[int, ...]:
    """Version that a table's folder is named after, for sorting."""
    return tuple(int(part) for part in path.parent.name.split(".") if part.isdigit())
