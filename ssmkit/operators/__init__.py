"""Sequence operators: the recurrences' base class, convolution, shift and running sums, under one protocol."""
