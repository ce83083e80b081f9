"""How functions are compiled, and what all compiled searches share. Its modules load numba."""
