"""`cspsched capacity`, `policies`, `models`, `devices`, `costs`: what there is."""

from __future__ import annotations

import json
from typing import Any

import click

from cspsched.cli.options import hardware_options, instance_serving, json_option

GIB = 2**30


def _show(rows: list[dict[str, Any]], schema: str, *, as_json: bool) -> None:
    """Print rows as JSON, or as a table with the keys as header."""
    if as_json:
        click.echo(json.dumps({"schema": schema, "rows": rows}, indent=1))
        return
    texts = [[str(value) for value in row.values()] for row in rows]
    lines = [list(rows[0]), *texts]
    widths = [max(len(line[k]) for line in lines) for k in range(len(rows[0]))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


@click.command("capacity")
@hardware_options
@json_option
def capacity_command(as_json: bool, **options: Any) -> None:  # noqa: FBT001 - click passes flags so
    """Where the GPU memory goes, byte by byte, and how many KV blocks remain.

    \b
    cspsched capacity --model llama-3.1-70b --device h100 --tensor-parallel 4
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.serving import plan_memory

    plan = plan_memory(instance_serving(options))
    rows = [
        {"share": label, "bytes": size if as_json else f"{size:>15,}", "GiB": round(size / GIB, 3)}
        for label, size in plan.rows()
    ]
    _show(rows, "cspsched/capacity/1", as_json=as_json)
    if not as_json:
        click.echo(
            f"{plan.kv_blocks:,} usable KV blocks of {plan.block_tokens} tokens = {plan.kv_tokens:,} tokens"
        )


@click.command("policies")
@json_option
def policies_command(as_json: bool) -> None:  # noqa: FBT001
    """List the policies, what each follows, and its settings."""
    from cspsched.policies.base import make_policy, policy_names

    rows = []
    for name in policy_names():
        policy = make_policy(name)
        follows = (type(policy).__doc__ or "").strip().splitlines()
        rows.append({"policy": name, "follows": follows[0] if follows else ""})
    _show(rows, "cspsched/policies/1", as_json=as_json)


@click.command("models")
@json_option
def models_command(as_json: bool) -> None:  # noqa: FBT001
    """List the LLM architectures that ship with cspsched."""
    from cspsched.costs.models import load_model, model_names

    rows = []
    for name in model_names():
        model = load_model(name)
        rows.append(
            {
                "model": name,
                "parameters": model.num_parameters if as_json else f"{model.num_parameters:,}",
                "layers": model.num_layers,
                "KV heads": model.num_kv_heads,
                "KV bytes per token": model.kv_bytes_per_token(),
                "title": model.title,
            }
        )
    _show(rows, "cspsched/models/1", as_json=as_json)


@click.command("devices")
@json_option
def devices_command(as_json: bool) -> None:  # noqa: FBT001
    """List the devices that ship with cspsched."""
    from cspsched.costs.models import device_names, load_device

    rows = []
    for name in device_names():
        device = load_device(name)
        rows.append(
            {
                "device": name,
                "memory GiB": round(device.memory_bytes / GIB, 2),
                "bandwidth GB/s": round(device.memory_bandwidth_bytes_per_s / 1e9),
                "title": device.title,
            }
        )
    _show(rows, "cspsched/devices/1", as_json=as_json)


@click.command("costs")
@click.argument("name", required=False)
@json_option
def costs_command(name: str | None, as_json: bool) -> None:  # noqa: FBT001
    """List the cost models, or show where one comes from, its fit error, and what it leaves out."""
    from cspsched.costs.presets import cost_names, describe_cost

    if name is None:
        infos = [describe_cost(known) for known in cost_names()]
        rows = [{"cost": info.name, "title": info.title} for info in infos]
        _show(rows, "cspsched/costs/1", as_json=as_json)
        return
    info = describe_cost(name)
    rows = [
        {"what": "title", "text": info.title},
        {"what": "source", "text": info.source},
        *({"what": f"fit error: {term}", "text": text} for term, text in info.fit_error.items()),
        {"what": "leaves out", "text": info.leaves_out},
    ]
    _show(rows, "cspsched/costs/1", as_json=as_json)
