"""Entry point of `python -m gptlab`."""

from gptlab.cli import main

main()
