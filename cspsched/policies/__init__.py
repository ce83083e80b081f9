"""Schedulers, one a file."""
