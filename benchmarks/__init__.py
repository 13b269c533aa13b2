"""Measurements of ssmkit, beside other software and the limits of the machine: `python -m benchmarks --help`.

Installed, this is `ssmkit.benchmarks`, and the command is `ssmkit bench`. `docs/benchmarks.md` says what is measured
and how.
"""
