"""Runs as one HTML file for people with a browser: it opens from disk and loads nothing from the network."""
