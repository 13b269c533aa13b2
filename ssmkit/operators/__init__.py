"""Sequence operators under one protocol: the base class of recurrences, convolution, shift and running sums."""
