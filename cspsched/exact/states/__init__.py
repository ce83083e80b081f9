"""The state search, for requests that arrive together: states, heuristic, best-first search."""
