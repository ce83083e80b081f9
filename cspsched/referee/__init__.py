"""The referee: every rule of the problem, and what a schedule implies, from its decisions alone."""
