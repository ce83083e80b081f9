"""Loops of the kernel for policies that choose per request in every batch."""
