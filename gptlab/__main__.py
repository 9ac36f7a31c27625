"""Entry point of `python -m gptlab`."""

from gptlab.entry import main

main()
