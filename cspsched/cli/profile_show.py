"""`cspsched profile show`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from cspsched.cli.console import show
from cspsched.cli.options import out_type
from cspsched.cli.profile_options import engine_option, fitted_rank_option, measured_model_option


@click.command("show")
@click.argument("profile", type=click.Path(path_type=Path))
@measured_model_option
@fitted_rank_option
@engine_option
@click.option("--out", type=out_type, required=True, help="Folder of the pictures.")
def show_command(
    profile: Path, model: str, tensor_parallel: int, engine: Literal["split", "unified"], out: Path
) -> None:  # fmt: skip
    """Draw what PROFILE measured, what a fit makes of it, and what is left over: one PNG a kind of work.

    \b
    cspsched profile show rows.parquet --model llama-3.1-8b --out pictures
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.estimator import fit_profile
    from cspsched.costs.models import load_model
    from cspsched.costs.rows import preferred_backends, read_rows
    from cspsched.report.output import require_writable
    from cspsched.report.profile_figures import write_profile_figures

    require_writable(out)
    fitted = fit_profile(
        read_rows(profile), load_model(model), tensor_parallel, engine=engine,
        backends=preferred_backends(profile),
    )  # fmt: skip
    for path in write_profile_figures(fitted, out):
        show(f"{path}: {fitted.fit_error[path.stem]}")
