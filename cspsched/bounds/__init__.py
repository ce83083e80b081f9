"""Certified lower bounds, one module each, and the checker that re-derives them."""
