"""Operator tables of other projects, read into the rows of a profile."""
