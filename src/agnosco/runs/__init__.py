"""Runs: a folder of maps, what it says of itself, and the jobs that fill it, here or on a cluster."""
