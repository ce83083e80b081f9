"""Synthetic traces: profiles of traffic, drawn with a seed, and fitted to traces."""

from __future__ import annotations

from cspsched.trace.generators.fit import Description, fit_profile
from cspsched.trace.generators.generate import generate_trace
from cspsched.trace.generators.profile import Profile, load_profile, shipped_profiles

__all__ = ["Description", "Profile", "fit_profile", "generate_trace", "load_profile", "shipped_profiles"]
