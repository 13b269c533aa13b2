"""`ssmkit bench`: the measurements of `benchmarks/`, which come with the package."""

from ..benchmarks._cli import app as bench


__all__ = ["bench"]
