"""Writes the tables of `docs/validation.md`: `python benchmarks/validation.py DATA_FOLDER [--only NAME]`.

DATA_FOLDER holds `real_runs`. What stands between `<!-- NAME -->` and `<!-- end -->` is what
`cspsched validate` finds with the options below; the text around it is written by hand. The stages on H100
take about ten minutes, the run on an RTX 4090 a few seconds.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from cspsched.report.validation import section
from cspsched.studies.validation import Settings, read_runs, validate_runs

PAGE = Path(__file__).parents[1] / "docs" / "validation.md"
RUNS = {
    "rtx4090": ("rtx4090_llama-3.1-8b_vllm-0.19", Settings()),
    "h100": ("h100_vllm_stages", Settings(frontend="vllm-openai")),
}
"""By name on the page: folder of the run, and how it is simulated."""


def block_of(name: str, data: Path) -> str:
    """What the page says of a run."""
    folder, settings = RUNS[name]
    runs = read_runs([data / "real_runs" / folder])
    return section(validate_runs(runs, settings, lambda *state: print(*state, file=sys.stderr)))


def written(page: str, name: str) -> str:
    """What stands on the page now."""
    return re.search(rf"(?s)<!-- {name} -->\n(.*?)<!-- end -->", page)[1]


def main() -> None:
    """Write the tables anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", choices=list(RUNS))
    options = parser.parse_args()
    for name in [options.only] if options.only else RUNS:
        found, head, tail = block_of(name, options.data), f"<!-- {name} -->\n", "<!-- end -->"
        page = PAGE.read_text(encoding="utf-8")
        page = page.replace(f"{head}{written(page, name)}{tail}", f"{head}{found}{tail}")
        PAGE.write_text(page, encoding="utf-8")
        print(f"{PAGE}: {name}")


if __name__ == "__main__":
    main()
