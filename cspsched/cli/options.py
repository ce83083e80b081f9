"""Options that several commands share, and the values that they are parsed into."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cspsched.cli.console import tell
from cspsched.errors import CspschedError, TraceError

if TYPE_CHECKING:
    from cspsched.costs.frontend import Frontend
    from cspsched.problem.instance import Instance
    from cspsched.problem.objectives import AnyObjective
    from cspsched.serving import Serving
    from cspsched.trace import Trace

Command = TypeVar("Command", bound=Callable[..., Any])

BUNDLED_TRACE = "chat-2000"
TRACE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".gz", ".zst")
MOST_SEED = 2**31 - 1
SECONDS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}
NUMBER = r"(\d+(?:\.\d+)?)"
COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
         "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}  # fmt: skip


class Option(click.Option):
    """An option whose old names still work and are not shown.

    Parameters
    ----------
    aliases
        The old names.
    """

    def __init__(self, *args: Any, aliases: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aliases = aliases
        self.opts = [*self.opts, *aliases]

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The record without the old names."""
        names, self.opts = self.opts, [name for name in self.opts if name not in self.aliases]
        try:
            return super().get_help_record(ctx)
        finally:
            self.opts = names

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """The name of today."""
        return f"'{self.opts[0]}'"


class Duration(click.ParamType[float]):
    """A time such as 60s, 5min or 500ms, a bare number in seconds; its value is in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds of a text."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(rf"{NUMBER}\s*(ms|s|min|h|)", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no time, such as 60s, 5min, 500ms or 60 (seconds)", param, ctx)
        return float(match[1]) * SECONDS[match[2] or "s"]


class Count(click.ParamType[int]):
    """A number of tokens, blocks or requests, such as 65536, 64k (64,000) or 64Ki (65,536)."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, at least 1."""
        text = str(value).strip().lower()
        if re.fullmatch(r"\d{1,3}(,\d{3})+", text):
            text = text.replace(",", "")
        match = re.fullmatch(rf"{NUMBER}({'|'.join(COUNTS)})", text)
        number = Fraction(match[1]) * COUNTS[match[2]] if match else Fraction(0)
        if number.denominator != 1 or number < 1:
            self.fail(
                f"{value!r} is no whole number from 1 on, such as 65536, 64k (64,000) or 64Ki (65,536)",
                param,
                ctx,
            )
        return int(number)


class Size(click.ParamType[int]):
    """Bytes with their unit, such as 4GiB or 512MB; its value is in bytes."""

    name = "size"
    suffix = ""
    what = "size with a unit, such as 4GiB or 512MB"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes of a text, rounded down."""
        if isinstance(value, int):
            return value
        units = {name.lower(): size for name, size in BYTES.items()}
        match = re.fullmatch(rf"{NUMBER}\s*({'|'.join(units)}){self.suffix}", value.strip().lower())
        if match is None:
            self.fail(f"{value!r} is no {self.what}", param, ctx)
        return int(Fraction(match[1]) * units[match[2]])


class Rate(Size):
    """Bytes per second with their unit, such as 25GB/s; its value is in bytes per second."""

    name = "rate"
    suffix = "/s"
    what = "rate with a unit, such as 25GB/s"


class ObjectiveText(click.ParamType[str]):
    """Text of an objective, refused if it means nothing."""

    name = "objective"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The text, as it is."""
        from cspsched.errors import InputError
        from cspsched.problem.objectives import parse_stages

        try:
            parse_stages(str(value))
        except InputError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class Window(click.ParamType[tuple[float, float]]):
    """Two times in seconds, `start:end`; either may be left out."""

    name = "start:end"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float]:
        """Start and end in seconds."""
        start, colon, end = str(value).partition(":")
        try:
            if not colon:
                raise ValueError
            return float(start or 0), float(end or "inf")
        except ValueError:
            self.fail(f"{value!r} is no window in seconds, such as 60:120 or :300", param, ctx)


class ManyValuesCommand(click.Command):
    """A command whose options marked `multiple` take several values after one name.

    `--heuristics vllm sarathi` is read as `--heuristics vllm --heuristics sarathi`. The values end at the
    next option, or at what looks like a trace.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Repeat the option's name before each further value."""
        many = {name for parameter in self.params if _takes_many(parameter) for name in parameter.opts}
        spread: list[str] = []
        option: str | None = None
        expects_value = False
        for argument in args:
            if argument.startswith("-"):
                name = argument.partition("=")[0]
                option = name if name in many else None
                expects_value = option is not None and "=" not in argument
            elif option is not None and not expects_value and _looks_like_trace(argument):
                option = None
            elif option is not None:
                if not expects_value:
                    spread.append(option)
                expects_value = False
            spread.append(argument)
        return super().parse_args(ctx, spread)


def _looks_like_trace(argument: str) -> bool:
    """Whether a value is no policy: an existing file, a path, or the name of a bundled trace."""
    from cspsched.trace.shipped import shipped_traces

    path = Path(argument)
    has_folder = ":" not in argument and path.name != argument
    return has_folder or path.suffix in TRACE_SUFFIXES or path.is_file() or argument in shipped_traces()


def _takes_many(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and parameter.multiple


def _stack(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


trace_options = _stack(
    click.option("--limit", type=Count(), help="Keep the first so many requests."),
    click.option("--window", type=Window(), help="Keep arrivals in [start, end) seconds from the first."),
    click.option("--scale-rate", type=float, metavar="FACTOR", help="Multiply the arrival rate."),
    click.option("--format", "trace_format", metavar="FORMAT",
                 help="Format of TRACE (see 'cspsched trace list').  [default: found by its columns]"),
    click.option("--columns", metavar="ROLE=COLUMN,...",
                 help="Columns of TRACE, such as arrival=time:ms,prompt=input_tokens,output=output_tokens."),
    click.option("--dejitter", metavar="uniform[:SEED]",
                 help="Draw each arrival within its tick, where a coarse clock has stamped them."),
)  # fmt: skip
"""How a trace is read, and which of its requests; collected by `selected_trace`."""

hardware_options = _stack(
    click.option("--model", help="LLM architecture (see 'cspsched models').  [default: llama-3.1-8b]"),
    click.option("--device", help="GPU (see 'cspsched devices').  [default: h100]"),
    click.option("--tensor-parallel", type=click.IntRange(min=1),
                 help="GPUs that share the model.  [default: the cost model's, else 1]"),
    click.option("--expert-parallel/--no-expert-parallel", default=None,
                 help="Let each GPU hold whole experts, not a slice of each.  [default: the cost model's]"),
    click.option("--kv-cache-dtype", type=click.Choice(["bf16", "fp8"]),
                 help="Type of KV elements.  [default: the model's]"),
    click.option("--block-tokens", type=Count(), default=16, show_default=True,
                 help="Tokens of a KV block."),
    click.option("--max-batch-tokens", type=Count(),
                 help="C: token budget of a batch.  [default: vLLM V1's on the device]"),
    click.option("--max-batch-requests", type=Count(),
                 help="R: most requests in a batch.  [default: vLLM V1's on the device]"),
    click.option("--gpu-memory-utilization", type=click.FloatRange(min=0, max=1, min_open=True), default=0.92,
                 show_default=True, help="Share of the device that the engine may fill."),
)  # fmt: skip
"""Model, device and limits of a batch."""

serving_options = _stack(
    hardware_options,
    click.option("--cost",
                 help="Cost model: a name (see 'cspsched costs') or a TOML/JSON file.  "
                 "[default: the one measured on model and device]"),
    click.option("--kv-tokens", type=Count(),
                 help="KV capacity in tokens, rounded down to blocks.  [default: see 'cspsched capacity']"),
    click.option("--kv-blocks", type=Count(), help="KV capacity in blocks, instead of tokens."),
    click.option("--max-model-len", type=Count(),
                 help="Longest prompt + output - 1 taken.  [default: the model's]"),
    click.option("--preemption", type=click.Choice(["none", "recompute", "swap", "either"]),
                 default="recompute", show_default=True,
                 help="May a request lose its KV cache: and compute it again, or move it to host memory?"),
    click.option("--host-memory", type=Size(),
                 help="Host memory of each GPU for swapped KV cache.  [default: 4GiB if there is swap]"),
    click.option("--swap-bandwidth", type=Rate(),
                 help="Rate of each GPU to and from host memory.  [default: the cost model's, else 25GB/s]"),
    click.option("--ttft-slo", type=Duration(), help="TTFT limit of requests that have none of their own."),
    click.option("--tpot-slo", type=Duration(), help="TPOT limit of requests that have none of their own."),
)  # fmt: skip
"""Everything that turns a trace into an instance; collected by `instance_serving`."""

frontend_option = click.option(
    "--frontend",
    default="off",
    show_default=True,
    metavar="WHAT",
    help="What a client waits for around the schedule, in its TTFT and latency only: a time such as 7.5ms, "
    "cost (the cost model's part), a shipped name, a file, or off.",
)

OBJECTIVE_HELP = (
    "What is minimised: makespan, latency, ttft, itl, tpot (sums), mean- or max-itl and -tpot, misses, "
    "weighted-latency, -ttft, -misses; 'latency+2*max-itl' is a weighted sum."
)
objective_option = click.option(
    "--objective",
    type=ObjectiveText(),
    default="latency",
    show_default=True,
    metavar="WHAT",
    help=OBJECTIVE_HELP,
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema field.")
workers_option = click.option(
    "--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Threads of the exact solver."
)
seed_option = click.option(
    "--seed",
    type=click.IntRange(min=0, max=MOST_SEED),
    default=0,
    show_default=True,
    help="Seed of the exact solver.",
)


def _split_policies(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    from cspsched.policies.base import split_policies

    del ctx, param
    return tuple(policy for value in values for policy in split_policies(value))


heuristics_option = click.option(
    "--heuristics",
    cls=Option,
    aliases=("--policy",),
    multiple=True,
    default=("vllm", "sarathi"),
    metavar="POLICY...",
    callback=_split_policies,
    help="Policies with their settings, such as vllm:max_num_seqs=256 sarathi:chunk=512.  "
    "[default: vllm sarathi]",
)
heuristic_option = click.option(
    "--heuristics",
    "policy",
    cls=Option,
    aliases=("--policy",),
    default="vllm",
    show_default=True,
    metavar="POLICY",
    help="Policy with its settings, such as sarathi:chunk=512 (see 'cspsched policies').",
)
trace_argument = click.argument("trace", type=click.Path(path_type=Path))
optional_trace_argument = click.argument("trace", type=click.Path(path_type=Path), required=False)
out_type = click.Path(path_type=Path, file_okay=False)

SERVING_NAMES = (
    "model", "device", "tensor_parallel", "data_parallel", "expert_parallel", "cost", "kv_cache_dtype",
    "block_tokens", "kv_tokens", "kv_blocks",
    "max_batch_tokens", "max_batch_requests", "max_model_len", "gpu_memory_utilization",
    "preemption", "host_memory", "swap_bandwidth", "ttft_slo", "tpot_slo",
)  # fmt: skip


FIELDS = {
    "host_memory": "host_memory_bytes",
    "swap_bandwidth": "swap_bytes_per_s",
    "ttft_slo": "ttft_limit_s",
    "tpot_slo": "tpot_limit_s",
}
"""Fields of the set-up whose options carry the unit in the value instead of the name."""


def output_option(what: str, *aliases: str, required: bool = False) -> Callable[[Command], Command]:
    """`--output FILE`, with the names that it had before."""
    return click.option(
        "--output",
        cls=Option,
        aliases=aliases,
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        required=required,
        help=what,
    )


def chosen_frontend(text: str, cost: str | Path) -> Frontend | None:
    """What `--frontend` means with a cost model; None if it is off."""
    from cspsched.costs.frontend import load_frontend

    return None if text == "off" else load_frontend(text, cost)


def one_objective(text: str, instance: Instance) -> AnyObjective:
    """The objective that a text means on the servable part of an instance; only `solve` takes several.

    Raises
    ------
    UsageError
        If there are several stages.
    """
    from cspsched.errors import UsageError
    from cspsched.problem.linear_form import read_objectives

    first, *others = read_objectives(text, instance.split_rejected()[0])
    if others:
        raise UsageError(
            f"--objective {text} has {len(others) + 1} stages, which only 'cspsched solve' takes; give one, "
            "or a weighted sum with +"
        )
    return first


TRACE_NAMES = ("limit", "window", "scale_rate", "trace_format", "columns", "dejitter")


def selected_trace(trace: Path | None, options: dict[str, Any]) -> Trace:
    """Trace of a path, of `-` or of a bundled name, with what says how to read it taken out of the options.

    What the reader took for what is told.
    """
    from cspsched.trace import read_trace
    from cspsched.trace.shipped import shipped_trace_path, shipped_traces
    from cspsched.trace.source import STDIN

    reading = {name: options.pop(name) for name in TRACE_NAMES}
    if trace is None or (str(trace) in shipped_traces() and not trace.exists()):
        trace = shipped_trace_path(str(trace or BUNDLED_TRACE))
    if trace != STDIN and not trace.exists():
        raise TraceError(_no_such_trace(str(trace), shipped_traces()))
    read = read_trace(trace, **reading)
    for note in read.notes:
        tell(f"note: {note}")
    return read


def _no_such_trace(name: str, known: list[str]) -> str:
    """What there is in place of a file that does not exist."""
    near = get_close_matches(name.lower(), known, n=1)
    hint = f"; did you mean the bundled trace {near[0]!r}?" if near else ""
    return f"{name} does not exist{hint} (bundled: {', '.join(known)})"


def instance_serving(options: dict[str, Any], **switches: bool) -> Serving:
    """Serving set-up, taken out of the options, and switches of the instance beside preemption."""
    from cspsched.problem.instance import Preemption, Switches
    from cspsched.serving import Serving

    given = {FIELDS.get(name, name): options.pop(name) for name in SERVING_NAMES if name in options}
    if "preemption" in given:
        preemption = Preemption(given.pop("preemption"))
        given["switches"] = Switches(preemption=preemption, **switches)
    serving = Serving(**given)
    _warn_of(serving)
    return serving


def _warn_of(serving: Serving) -> None:
    """Tell what a cost file of the user says that cannot be, of a model and device that it names.

    What cannot be read or is not known is refused where it is needed.
    """
    from cspsched.costs.devices import load_device
    from cspsched.costs.presets import COST_SUFFIXES, describe_cost, load_cost
    from cspsched.costs.sanity import complaints
    from cspsched.serving import hardware, model_of

    if serving.cost is None or Path(serving.cost).suffix not in COST_SUFFIXES:
        return
    try:
        info = describe_cost(serving.cost)
        if info.model is None or info.device is None:
            return
        _, device, parallelism = hardware(serving)
        facts = model_of(serving), load_device(device), parallelism
    except CspschedError:
        return
    for sentence in complaints(load_cost(serving.cost), *facts):
        tell(f"warning: {sentence}")
