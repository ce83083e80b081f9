"""How well shipped cost models meet measured batches of one attention kernel, and what mixed terms are worth.

Usage: python benchmarks/mixed_batches.py DATA_FOLDER

DATA_FOLDER holds `prof_llmservingsim_{RTXPRO6000,RTX4090}_llama8b_{dense,per_sequence,attention,skew}.csv`.
Every batch of the attention and skew tables that serving sees and the device can hold is priced with and
without the mixed terms: attention alone, and whole steps, which are the attention, the token operators and
the head as measured. Printed are mean absolute and mean signed errors. The terms were fitted to batches of
the same tables, those of the RTX 4090 without its skew table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cspsched.costs.estimator.features import attention_work, head_work, of_operator, served, token_work
from cspsched.costs.estimator.tables import MonotoneTable
from cspsched.costs.fit import Measurements, Terms, price_terms, relative_errors
from cspsched.costs.importers.llmservingsim import import_llmservingsim
from cspsched.costs.models import load_model
from cspsched.costs.presets import load_cost
from cspsched.problem.cost import CostModel

MODEL = load_model("llama-3.1-8b")
OPERATORS = {"attn_mixed": "mixed batches", "attn_prefill": "chunks alone", "attn_decode": "decodes alone"}
ATTENTION_TERMS = (
    "prefill_batch", "prefill_request", "prefill_attention", "prefill_tokens", "prefill_context",
    "decode_batch", "decode_request", "decode_context",
)  # fmt: skip
MIXED_TERMS = ("mixed_request", "mixed_context")
OTHER_TERMS = ("step", "tokens", "head")


@dataclass(frozen=True)
class Device:
    """A device with tables, and what it runs and holds at most."""

    table: str
    cost: str
    most_decodes: int
    most_tokens: int

    def paths(self, folder: Path) -> list[Path]:
        """Its tables."""
        kinds = ("dense", "per_sequence", "attention", "skew")
        return [folder / f"prof_llmservingsim_{self.table}_llama8b_{kind}.csv" for kind in kinds]

    def held(self, measured: Measurements) -> Measurements:
        """Batches that it can run."""
        features = measured.features
        tokens = features.prefill_tokens + features.prefill_context + features.decode_context
        return measured.subset((features.num_decodes <= self.most_decodes) & (tokens <= self.most_tokens))


DEVICES = (
    Device("RTXPRO6000", "rtx-pro-6000-llama-3.1-8b", 256, 500_000),
    Device("RTX4090", "rtx-4090-llama-3.1-8b", 64, 41_408),
)


def terms_of(cost: CostModel, names: tuple[str, ...]) -> Terms:
    """Some terms of a cost model."""
    return {name: getattr(cost, name) for name in names}


def compare(folder: Path, device: Device) -> Iterator[str]:
    """Two lines for each kind of batch: without the mixed terms, and with them."""
    rows, cost = import_llmservingsim(device.paths(folder), MODEL), load_cost(device.cost)
    tokens, head = token_work(rows, MODEL, MODEL.num_layers, 1), head_work(rows, MODEL, 1)
    assert head is not None
    token_table = MonotoneTable(tokens.features.tokens, tokens.times_ns)
    head_table = MonotoneTable(head.features.num_generating, head.times_ns)
    for operator, kind in OPERATORS.items():
        measured = device.held(served(attention_work(of_operator(rows, operator), MODEL.num_layers)))
        # A chunk ends its prompt, so that it gets a token.
        generating = measured.features.num_decodes + measured.features.num_prefills
        features = measured.features._replace(num_generating=generating)
        rest_ns = token_table(features.tokens) + head_table(generating)
        others_ns = price_terms(terms_of(cost, OTHER_TERMS), features)
        for how, names in (("without", ATTENTION_TERMS), ("with", ATTENTION_TERMS + MIXED_TERMS)):
            priced_ns = price_terms(terms_of(cost, names), features)
            whole = relative_errors(priced_ns + others_ns, measured.times_ns + rest_ns)
            alone = relative_errors(priced_ns, measured.times_ns)
            yield (
                f"{len(rest_ns):6,} {kind:14} {how:8} whole {whole.mean:5.1%} / {whole.bias:+6.1%}   "
                f"attention {alone.mean:5.1%} / {alone.bias:+6.1%}"
            )


def main() -> None:
    """Price every batch of both devices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data_folder", type=Path)
    folder = parser.parse_args().data_folder
    for device in DEVICES:
        for line in compare(folder, device):
            print(f"{device.table:10} {line}", flush=True)


if __name__ == "__main__":
    main()
