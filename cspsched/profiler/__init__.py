"""Measures operators with torch (an extra, imported inside functions only), and judges cost models."""
