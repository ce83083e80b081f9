"""Where tests find the checkout, its pages, and recorded data outside of it."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DATA = ROOT.parent / "shared" / "data"
"""Data that is too large for the repository; tests that need it skip where it is absent."""
