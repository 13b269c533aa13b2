"""Checkpoints of other software, read and written: strict, memory-mapped, and without PyTorch."""

from ._describe import Checkpoint as Checkpoint, describe as describe
from ._dialect import (
    Architecture as Architecture,
    Dialect as Dialect,
    architectures as architectures,
    register_architecture as register_architecture,
)
from ._errors import CheckpointError as CheckpointError, shown as shown
from ._hub import Place as Place, locate as locate
from ._keys import (
    Key as Key,
    boolean as boolean,
    factor as factor,
    number as number,
    only as only,
    optional as optional,
    pair as pair,
    positive as positive,
    read_keys as read_keys,
    token_ids as token_ids,
    unknown_keys as unknown_keys,
    whole as whole,
    without as without,
    write_keys as write_keys,
)
from ._load import from_pretrained as from_pretrained
from ._save import check_writable as check_writable, save_pretrained as save_pretrained
from ._source import (
    Reshape as Reshape,
    Slice as Slice,
    Source as Source,
    Stack as Stack,
    Transpose as Transpose,
)
from ._stored import StoredTensor as StoredTensor
from ._tensors import open_tensors as open_tensors
