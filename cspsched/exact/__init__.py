"""The exact solver: CP-SAT models of the problem."""
