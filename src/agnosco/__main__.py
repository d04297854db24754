"""``python -m agnosco``: the command line."""

from .cli import main

main()
