"""How functions are compiled, and what all that is compiled shares."""
