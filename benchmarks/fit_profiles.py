"""Fits the shipped profiles of traffic to public traces: `python benchmarks/fit_profiles.py DATA [OUT]`.

The folder has the traces as their repositories publish them, and ServeGen's windows of clients in one table.
The profiles are written to `traces/profiles`; a test fits them again where the data are and compares.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.integrate import trapezoid

from cspsched.trace import read_trace
from cspsched.trace.generators import Description, Profile, fit_profile
from cspsched.trace.generators.arrivals import Renewal
from cspsched.trace.generators.clients import Client
from cspsched.trace.generators.fit_lengths import NUM_QUANTILES
from cspsched.trace.generators.lengths import Lengths, QuantileTable, nodes
from cspsched.trace.generators.rate import Modulation, RateShape

AZURE = "of Azure/AzurePublicDataset b469a11 (CC-BY-4.0; Splitwise, ISCA'24)"
MOONCAKE = "of kvcache-ai/Mooncake 3b5a594, FAST25-release/traces (Apache-2.0)"
VIDUR = "of microsoft/vidur 7d47513, data/processed_traces (MIT)"
SERVEGEN = "alibaba/ServeGen f891d11 (Apache-2.0)"
WINDOWS = "servegen_client_windows.parquet"
WINDOW_S, HOUR_S, DAY_S = 600, 3600, 86_400
LONGEST_TOKENS = 131_072


@dataclass(frozen=True)
class TraceSource:
    """A trace that a profile is fitted to."""

    file: str
    source: str
    dejitter: str | None = None


TRACES = {
    "azure-2023-code": TraceSource("azure2023_code.csv", f"AzureLLMInferenceTrace_code.csv {AZURE}"),
    "azure-2023-conv": TraceSource("azure2023_conv.csv", f"AzureLLMInferenceTrace_conv.csv {AZURE}"),
    "mooncake-conversation": TraceSource(
        "mooncake_fast25_conversation.jsonl", f"conversation_trace.jsonl {MOONCAKE}", "uniform:0"
    ),
    "mooncake-synthetic": TraceSource("mooncake_fast25_synthetic.jsonl", f"synthetic_trace.jsonl {MOONCAKE}"),
    "arxiv-summarization": TraceSource(
        "vidur_arxiv_summarization_4k.csv", f"lengths of arXiv summarization, capped at 4,096 tokens, {VIDUR}"
    ),
}


@dataclass(frozen=True)
class PublishedLengths:
    """What ServeGen's paper and files say of the lengths of a pool, in tokens."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: int | None = None


POOLS = {
    "servegen-m-large": ("language/m-large", None),
    "servegen-m-mid": ("language/m-mid", None),
    "servegen-m-small": (
        "language/m-small",
        (PublishedLengths(448, 106, 1422, 3461), PublishedLengths(57, 12, 178, 346)),
    ),
    "servegen-deepseek-r1": (
        "reason/deepseek-r1",
        (PublishedLengths(636, 206, 1879, 11_975), PublishedLengths(1034, 552, 1954, 8452, 32_768)),
    ),
    "servegen-mm-image": ("multimodal/mm-image", None),
}


def fitted_profile(name: str, data: Path, fit_date: str | None = None) -> Profile:
    """One of the shipped profiles, fitted anew."""
    if name in POOLS:
        return _pool_profile(name, pd.read_parquet(data / WINDOWS), fit_date)
    made = TRACES[name]
    trace = read_trace(data / made.file, dejitter=made.dejitter)
    profile = fit_profile(trace, Description(name=name, source=made.source, fit_date=fit_date))
    if made.dejitter is None:
        return profile
    note = "the clock of the trace ticks every 3 s; arrivals were drawn uniformly within the ticks (seed 0)"
    return profile.model_copy(update={"notes": (*profile.notes, note)})


def _pool_profile(name: str, windows: pd.DataFrame, fit_date: str | None) -> Profile:
    """Clients of a pool with their shares and rhythms, the hours of all, and what the rate does besides."""
    pool, published = POOLS[name]
    rows = windows[windows["pool"] == pool]
    totals = rows.groupby("window_start_s")["rate_rps"].sum()
    num_windows = int(rows["window_start_s"].max()) // WINDOW_S + 1
    hours = _hours(totals)
    notes = [
        "clients share the hours and the modulation of the pool; each keeps its share and its rhythm",
        f"hours and modulation of {num_windows * WINDOW_S / DAY_S:.1f} days in windows of 600 s; the time "
        "zone of hour 0 is not known",
    ]
    lengths = None
    if published is None:
        notes.append("its lengths are not published as numbers: generate takes those of another profile")
    else:
        prompt, output = map(_table, published)
        lengths = Lengths(prompt=prompt, output=output)
        notes.append(
            "lengths: geometric between the published p50, p95 and p99; their means are "
            f"{_mean(prompt):.0f} and {_mean(output):.0f}, published "
            f"{published[0].mean} and {published[1].mean}"
        )
    return Profile(
        name=name,
        source=f"pool {pool} of {SERVEGEN}, all clients and windows",
        fit_date=fit_date,
        notes=tuple(notes),
        rate_per_s=round(float(totals.sum()) / num_windows, 4),
        rate=RateShape(hours=tuple(hours.tolist()), modulation=_modulation(totals, hours)),
        lengths=lengths,
        clients=tuple(_clients(rows)),
    )


def _hours(totals: pd.Series[float]) -> np.ndarray:
    hour = totals.index.to_numpy() % DAY_S // HOUR_S
    means = np.array([totals.to_numpy()[hour == k].mean() for k in range(24)])
    return np.round(means / means.mean(), 4)


def _modulation(totals: pd.Series[float], hours: np.ndarray) -> Modulation:
    """Of what is left when the hours are taken out; windows without any request are gaps of the recording."""
    factor = totals / hours[totals.index.to_numpy() % DAY_S // HOUR_S]
    logarithm = np.log(factor.reindex(range(0, int(totals.index.max()) + 1, WINDOW_S)))
    pairs = pd.concat([logarithm, logarithm.shift()], axis=1).dropna()
    phi = float(np.corrcoef(pairs.to_numpy().T)[0, 1])
    return Modulation(
        cv=round(float(factor.std() / factor.mean()), 4), phi=round(max(phi, 0.0), 4), step_s=float(WINDOW_S)
    )


def _clients(rows: pd.DataFrame) -> Iterator[Client]:
    """Clients by their load; the rhythm is the one in the middle of a client's requests."""
    total = rows["rate_rps"].sum()
    loads = rows.groupby("client")["rate_rps"].sum().sort_values(ascending=False, kind="stable")
    for client, load in loads.items():
        mine = rows[rows["client"] == client].sort_values("iat_cv", kind="stable")
        reached = mine["rate_rps"].cumsum().to_numpy()
        cv = float(mine["iat_cv"].to_numpy()[np.searchsorted(reached, reached[-1] / 2)])
        gamma = mine.loc[mine["pattern"] == "Gamma", "rate_rps"].sum()
        arrivals = Renewal(
            family="gamma" if 2 * gamma >= mine["rate_rps"].sum() else "weibull",
            cv=round(min(max(cv, 0.05), 50.0), 4),
        )
        yield Client(share=float(f"{load / total:.6g}"), arrivals=arrivals)


def _table(wanted: PublishedLengths) -> QuantileTable:
    """Quantiles from 1 token through p50, p95 and p99 to the longest, geometric between them.

    The longest length, where it is not published, is the one with which the mean is nearest to the published.
    """

    def table(longest: float) -> QuantileTable:
        known = [1.0, wanted.p50, wanted.p95, wanted.p99, longest]
        tokens = np.exp(np.interp(nodes(NUM_QUANTILES), [0.0, 0.5, 0.95, 0.99, 1.0], np.log(known)))
        return QuantileTable(tokens=tuple(np.rint(tokens).astype(int).tolist()))

    if wanted.max is not None:
        return table(wanted.max)
    candidates = [table(longest) for longest in np.geomspace(wanted.p99, LONGEST_TOKENS, 200)]
    return min(candidates, key=lambda one: abs(_mean(one) - wanted.mean))


def _mean(table: QuantileTable) -> float:
    return float(trapezoid(table.tokens, nodes(len(table.tokens))))


def main(data: Path, out: Path) -> None:
    """Fit and write all of them."""
    today = datetime.now(UTC).date().isoformat()
    for name in (*TRACES, *POOLS):
        profile = fitted_profile(name, data, today)
        (out / f"{name}.json").write_text(profile.to_text(), encoding="utf-8")
        dispersion = (f"{row.trace:g} ~ {row.profile:g}" for row in profile.dispersion)
        print(name, f"{profile.rate_per_s or 0:.4g}/s", *dispersion, sep=", ")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else "traces/profiles"))
