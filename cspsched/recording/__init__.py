"""Recorded schedules of real engines: recorded, read, replayed batch by batch, imported.

Nothing is imported here, so that the recorder inside a serving engine loads nothing else of cspsched.
"""
