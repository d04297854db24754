"""Weights files: what they contain, which are refused, and how the others are opened."""
