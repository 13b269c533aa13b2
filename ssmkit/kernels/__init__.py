"""Pure-array kernels: coefficients and a state in, outputs and a state out. Standard XLA primitives only."""

from ._chunk_scan import chunk_scan as chunk_scan, chunk_scan_of as chunk_scan_of, family_of as family_of
from ._elementwise import ELEMENTWISE as ELEMENTWISE
from ._inside import matrix as matrix, states as states
from ._pairwise_decays import pairwise_decays as pairwise_decays
from ._per_key import DECAY_PER_KEY as DECAY_PER_KEY
from ._platform import target as target
from ._reference import reference as reference
from ._scalar import SCALAR_DECAY as SCALAR_DECAY
from ._schedule import parallel as parallel, serial as serial
from ._step import step as step
from ._tuning import Tuning as Tuning, tuned as tuned, tuning as tuning
