"""`python -m makel` is `makel`."""

from makel.cli import main

main()
