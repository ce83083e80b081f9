"""Schedules without a proof: list scheduling and local search."""
