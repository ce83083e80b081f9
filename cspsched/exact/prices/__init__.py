"""Dual prices of tokens, from batches and from paths, and the bounds that they give."""
