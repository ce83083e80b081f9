"""Writes `docs/cost_models.md` from the shipped cost files: `python docs/generate_cost_page.py`.

A test makes the page in memory and compares it with the file.
"""

from __future__ import annotations

from pathlib import Path

from cspsched.costs.presets import CostInfo, cost_names, describe_cost

PAGE = Path(__file__).with_name("cost_models.md")
COMMAND = "python docs/generate_cost_page.py"


def page() -> str:
    """Text of the page."""
    infos = [describe_cost(name) for name in cost_names()]
    lines = [
        f"<!-- Written by `{COMMAND}`; do not edit. -->",
        "# Shipped cost models",
        "",
        "What each is of, how well it meets the tables that it was fitted to, and what it leaves out, in the",
        "words of its file (`cspsched costs NAME`). How they are fitted: [costs.md](costs.md).",
        "",
        "MAPE: mean absolute relative error; p95: its 95th percentile; bias: mean signed error. In sample:",
        "the measurements that were fitted. Held out: ten folds. Extrapolated: a fit to half of the largest",
        "number of tokens or requests (attention: a quarter of the longest length), asked beyond.",
        "",
        "## Errors",
        "",
        "| cost model | work | error |",
        "|---|---|---|",
        *(row for info in infos for row in _errors(info)),
        "",
        "## Left out",
        "",
        "| leaves out | cost models |",
        "|---|---|",
        *_grouped({info.name: info.leaves_out for info in infos}),
        "",
        "## Sources",
        "",
        "| source | cost models |",
        "|---|---|",
        *_grouped({info.name: info.source for info in infos}),
    ]
    return "\n".join(lines) + "\n"


def _errors(info: CostInfo) -> list[str]:
    return [f"| `{info.name}` | {work.replace('_', ' ')} | {text} |" for work, text in info.fit_error.items()]


def _grouped(texts: dict[str, str]) -> list[str]:
    """One row a text, with all that share it."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(f"`{name}`")
    return [f"| {text} | {', '.join(those)} |" for text, those in names.items()]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
