"""The exact solver: a portfolio of searches, one folder for each method."""
