"""Backdoors: a scan for them, compromised networks to try it on, and what their triggers leave in a map."""
