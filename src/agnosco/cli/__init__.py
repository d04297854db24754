"""The command line: what is typed, what is printed, and the two commands that only it has (demo, doctor)."""
