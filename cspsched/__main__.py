"""`python -m cspsched`."""

from cspsched.cli import main

main()
