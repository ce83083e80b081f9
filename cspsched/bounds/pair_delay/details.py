"""What the details of a `pair-delay` certificate are counted in."""

from __future__ import annotations

PAIR_DELAY = "pair-delay"
SHARE_UNIT = 16
"""Shares are in sixteenths."""
MOST_CHUNKS = 256
"""Prompts in more batches are bounded together."""
