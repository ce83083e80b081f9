"""`cspsched capacity`, `policies`, `models`, `devices`, `costs`: what there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cspsched.cli.console import show, tell
from cspsched.cli.options import hardware_options, instance_serving, json_option

if TYPE_CHECKING:
    from cspsched.costs.presets import CostInfo
    from cspsched.policies.catalogue import Entry, Setting

GIB = 2**30
LIMIT_DECIDES = "the instance's"
Rows = list[dict[str, Any]]


def _show(rows: Rows, schema: str, *, as_json: bool, sums: dict[str, Any] | None = None) -> None:
    """Print rows, and sums over them, as JSON; or the rows as a table, numbers to the right."""
    if as_json:
        show(json.dumps({"schema": schema, "rows": rows, **(sums or {})}, indent=1))
        return
    header = [name.replace("_", " ") for name in rows[0]]
    lines = [header, *([_text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numbers = [isinstance(value, int | float) for value in rows[0].values()]
    for line in lines:
        columns = zip(line, widths, numbers, strict=True)
        cells = [cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns]
        show("  ".join(cells).rstrip())


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


@click.command("capacity")
@hardware_options
@json_option
def capacity_command(as_json: bool, **options: Any) -> None:  # noqa: FBT001 - click passes flags so
    """Where the GPU memory goes, byte by byte, and the KV blocks left.

    \b
    cspsched capacity --model llama-3.1-70b --device h100 --tensor-parallel 4
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.serving import plan_memory

    plan = plan_memory(instance_serving(options))
    rows: Rows = [{"share": label, "bytes": size, "GiB": size / GIB} for label, size in plan.rows()]
    sums = {
        "kv_blocks": plan.kv_blocks,
        "block_tokens": plan.block_tokens,
        "kv_tokens": plan.kv_tokens,
    }
    _show(rows, "cspsched/capacity/1", as_json=as_json, sums=sums)
    if not as_json:
        show(f"{plan.kv_blocks:,} usable KV blocks of {plan.block_tokens} tokens = {plan.kv_tokens:,} tokens")


@click.command("policies")
@click.argument("name", required=False)
@json_option
def policies_command(name: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the policies with what they follow and their settings.

    With NAME only that one, with the meaning of its settings; it may be FILE.py:CLASS. The engine says
    whether the default settings compile for long traces, or run as plain Python.

    \b
    cspsched policies
    cspsched policies vllm
    cspsched compare --heuristics vllm:max_num_seqs=256
    """  # noqa: D301
    from cspsched.policies.base import policy_names
    from cspsched.policies.catalogue import describe_policy

    entries = [describe_policy(policy) for policy in ([name] if name else policy_names())]
    if as_json:
        _show([_policy_row(entry) for entry in entries], "cspsched/policies/1", as_json=True)
        return
    for entry in entries:
        source = f"{entry.source.program} {entry.source.version}, {entry.source.url}" if entry.source else "-"
        show(f"{entry.name}: {entry.follows}")
        show(f"    source: {source}; engine: {entry.engine}")
        for setting in entry.settings:
            show(_setting_text(setting, with_meaning=name is not None))


def _policy_row(entry: Entry) -> dict[str, Any]:
    """One policy as plain values; a default of None is one that the instance decides."""
    return {
        "policy": entry.name,
        "follows": entry.follows,
        "program": entry.source and entry.source.program,
        "version": entry.source and entry.source.version,
        "source": entry.source and entry.source.url,
        "engine": entry.engine,
        "settings": {setting.name: setting.default for setting in entry.settings},
        "explained": [
            {"setting": setting.name, "choices": list(setting.values), "meaning": setting.meaning}
            for setting in entry.settings
        ],
    }


def _setting_text(setting: Setting, *, with_meaning: bool) -> str:
    """A setting with its default, and with its choices and its meaning if they are asked for."""
    default = LIMIT_DECIDES if setting.default is None else json.dumps(setting.default)
    line = f"    {setting.name} = {default}"
    if not with_meaning:
        return line
    choices = f" (one of {', '.join(setting.values)})" if setting.values else ""
    return f"{line}{choices}\n        {setting.meaning}"


@click.command("models")
@json_option
def models_command(as_json: bool) -> None:  # noqa: FBT001
    """List the LLM architectures.

    \b
    cspsched models
    cspsched capacity --model qwen2.5-7b
    """  # noqa: D301
    from cspsched.costs.models import load_model, model_names

    rows: Rows = []
    for name in model_names():
        model = load_model(name)
        rows.append(
            {
                "model": name,
                "parameters": model.num_parameters,
                "layers": model.num_layers,
                "kv_heads": model.num_kv_heads,
                "kv_bytes_per_token": model.kv_bytes_per_token(),
                "title": model.title,
            }
        )
    _show(rows, "cspsched/models/1", as_json=as_json)


@click.command("devices")
@json_option
def devices_command(as_json: bool) -> None:  # noqa: FBT001
    """List the devices, with the default C and R of vLLM V1 there.

    \b
    cspsched devices
    cspsched capacity --device a100-80
    """  # noqa: D301
    from cspsched.costs.devices import device_names, engine_defaults, load_device

    rows: Rows = []
    for name in device_names():
        device = load_device(name)
        defaults = engine_defaults(device)
        rows.append(
            {
                "device": name,
                "memory_GiB": device.memory_bytes / GIB,
                "bandwidth_GB_per_s": round(device.memory_bandwidth_bytes_per_s / 1e9),
                "max_batch_tokens": defaults.max_batch_tokens,
                "max_batch_requests": defaults.max_batch_requests,
                "title": device.title,
            }
        )
    _show(rows, "cspsched/devices/1", as_json=as_json)


class CostsGroup(click.Group):
    """A group that takes the name of a cost model where there is no command of that name."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or the one that shows a cost model."""
        if args[0] in self.commands:
            return super().resolve_command(ctx, args)
        return "show", self.commands["show"], args


@click.group("costs", cls=CostsGroup, invoke_without_command=True)
@json_option
@click.pass_context
def costs_group(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001
    """List the cost models, show where one comes from, or compose one.

    \b
    cspsched costs
    cspsched costs h100-llama-3.1-8b
    cspsched costs compose
    """  # noqa: D301
    if ctx.invoked_subcommand is None:
        from cspsched.costs.presets import cost_names, describe_cost

        known: Rows = [{"cost": info.name, "title": info.title} for info in map(describe_cost, cost_names())]
        _show(known, "cspsched/costs/1", as_json=as_json)


@costs_group.command("compose")
@hardware_options
@click.option(
    "--data-parallel", type=click.IntRange(min=1), default=1, show_default=True,
    help="Groups of GPUs with requests of their own that share the experts.",
)  # fmt: skip
@click.option(
    "--pipeline-parallel", type=click.IntRange(min=1), default=1, show_default=True,
    help="Stages of the model, of which the one with the head is priced.",
)  # fmt: skip
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="File, .toml.  [default: the cache's]"
)
@json_option
def compose_command(output: Path | None, pipeline_parallel: int, as_json: bool, **options: Any) -> None:  # noqa: FBT001
    """Compose a cost model of measured operators, for any model on a device that there are tables of.

    The tables are those of the extra 'aic' (pip install 'cspsched[aic]'). A MODEL is a name, or the
    config.json of a model on Hugging Face. Where a model and a device are named and no cost model ships for
    them, every command does this by itself; what is composed is kept in the user's cache.

    A DEVICE is a name or a TOML file, which may name the link between the GPUs; see docs/costs.md.

    \b
    cspsched costs compose --model config.json --device h100 --tensor-parallel 4
    cspsched costs compose --model qwen3-30b-a3b --device h100 --data-parallel 2 --expert-parallel
    cspsched compare trace.csv --model config.json --device h200
    """  # noqa: D301
    from cspsched.costs.compose import compose_cost
    from cspsched.costs.devices import load_device
    from cspsched.costs.presets import describe_cost
    from cspsched.report.output import write_files
    from cspsched.serving import hardware, model_of

    serving = instance_serving(options)
    _, device, parallelism = hardware(serving)
    parallelism = replace(parallelism, pipeline=pipeline_parallel)
    file = compose_cost(model_of(serving), load_device(device), parallelism)
    if output is not None:
        (file,) = write_files(output.parent, {output.name: file.read_bytes()})
    _describe(describe_cost(file), as_json=as_json)
    tell(f"cost model: {file}")


@costs_group.command("show", hidden=True)
@click.argument("name")
@json_option
def show_cost_command(name: str, as_json: bool) -> None:  # noqa: FBT001
    """Show where cost model NAME comes from, with its errors and what it leaves out.

    NAME is a shipped one or a file.

    \b
    cspsched costs show h100-llama-3.1-8b
    """  # noqa: D301
    from cspsched.costs.presets import describe_cost

    _describe(describe_cost(name), as_json=as_json)


def _describe(info: CostInfo, *, as_json: bool) -> None:
    rows: Rows = [
        {"what": "title", "text": info.title},
        {"what": "source", "text": info.source},
        *({"what": f"fit error: {term}", "text": text} for term, text in info.fit_error.items()),
        {"what": "leaves out", "text": info.leaves_out},
    ]
    _show(rows, "cspsched/cost-description/1", as_json=as_json)
