"""Meshes of devices, and the placement of models on them.

A mesh has up to three axes. Rows are spread over `data`, heads and channels over `model`, and tokens over `sequence`.
"""

from .._sharding import axis_size as axis_size
from ._mesh import AXES as AXES, make_mesh as make_mesh, mesh_of as mesh_of
from ._placement import fully_shard as fully_shard, shard as shard
from ._specs import partition_specs as partition_specs
