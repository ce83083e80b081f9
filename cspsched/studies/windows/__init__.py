"""Exact windows: small problems sampled from a policy's run, solved to the end. A sample, not a bound."""

from cspsched.studies.windows.sample import Window, WindowSample, WindowShape, sample_windows
from cspsched.studies.windows.study import WindowStudy, WindowVerdict, study_windows

__all__ = [
    "Window",
    "WindowSample",
    "WindowShape",
    "WindowStudy",
    "WindowVerdict",
    "sample_windows",
    "study_windows",
]
