"""`cspsched profile import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cspsched.cli.console import counted, show
from cspsched.cli.options import ManyValuesCommand, Option

if TYPE_CHECKING:
    import pandas as pd


@click.command("import", cls=ManyValuesCommand)
@click.argument("project", type=click.Choice(["vidur", "aiconfigurator", "llmservingsim"]))
@click.argument("tables", nargs=-1, type=click.Path(path_type=Path))
@click.option("--model", required=True, help="LLM that the rows are for (see 'cspsched models').")
@click.option(
    "--device", default="h100", show_default=True, help="GPU, for kernels that aiconfigurator's tables lack."
)
@click.option(
    "--tensor-parallel",
    cls=Option,
    aliases=("--tp",),
    type=click.IntRange(min=1),
    multiple=True,
    default=(1,),
    metavar="N...",
    help="Degrees of tensor parallelism of the rows; Vidur's files name their own.  [default: 1]",
)
@click.option(
    "--system", help="Take aiconfigurator's tables of a system such as h200_sxm from the installed package."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of rows, .parquet or .csv.",
)
def import_command(
    project: str,
    tables: tuple[Path, ...],
    model: str,
    device: str,
    tensor_parallel: tuple[int, ...],
    system: str | None,
    output: Path,
) -> None:  # fmt: skip
    """Turn operator TABLES of another project into rows of a profile.

    PROJECT is vidur, aiconfigurator or llmservingsim. TABLES are files of that project, of one device; what
    is in each is seen from its columns. Then: 'cspsched profile fit'.

    \b
    cspsched profile import vidur mlp.csv attention.csv --model llama-2-70b --output rows.parquet
    cspsched profile import aiconfigurator --system h200_sxm --model llama-3.1-8b --output rows.csv
    """  # noqa: D301 - click's marker for text that is not to be wrapped
    from cspsched.costs.rows import write_rows

    if not tables and system is None:
        raise click.UsageError(
            "no tables are given; name files, or a --system of an installed aiconfigurator"
        )
    rows = _rows(project, tables, model, device, tensor_parallel, system)
    write_rows(rows, output)
    found = sorted(rows["op"].unique())
    of = f"{counted(len(found), 'operator')}: {', '.join(found)}"
    show(f"{output}: {counted(len(rows), 'row')} of {of}")


def _rows(
    project: str, tables: tuple[Path, ...], name: str, device: str, ranks: tuple[int, ...], system: str | None
) -> pd.DataFrame:
    import pandas as pd

    from cspsched.costs.devices import load_device
    from cspsched.costs.importers import aiconfigurator, llmservingsim, vidur
    from cspsched.costs.models import load_model
    from cspsched.costs.parallelism import Parallelism

    model = load_model(name)
    if project == "vidur":
        return vidur.import_vidur(tables, model)
    if project == "llmservingsim":
        return llmservingsim.import_llmservingsim(tables, model, ranks[0])
    paths = [*tables, *(aiconfigurator.installed_tables(system) if system else [])]
    found = aiconfigurator.AicTables.read(paths)
    parts = [found.rows(model, load_device(device), Parallelism(tensor=number)) for number in ranks]
    return pd.concat(parts, ignore_index=True)
