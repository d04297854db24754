"""``python -m agnosco``: the command line."""

from .cli.app import main

main()
