"""Property tests draw the same examples every time; a failure in CI is one that anybody can repeat."""

from hypothesis import settings

settings.register_profile("cspsched", derandomize=True, deadline=None)
settings.load_profile("cspsched")
