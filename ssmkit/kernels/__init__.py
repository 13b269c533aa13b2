"""Pure-array kernels: coefficients and a state in, outputs and a state out. Standard XLA primitives only."""

from ._chunk_scan import chunk_scan as chunk_scan
from ._reference import reference as reference
from ._schedule import backend_chunk_size as backend_chunk_size, parallel as parallel, serial as serial
from ._segment import segment_sums as segment_sums
from ._step import step as step
