"""Measurements of ssmkit against other software; each module is a script, run as `python -m benchmarks.NAME`."""
