"""Classifiers: where they come from, and the one door through which their weights come in."""
