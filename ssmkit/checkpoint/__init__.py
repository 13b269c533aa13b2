"""Reading and writing of other software's checkpoints: strict, memory-mapped, and without PyTorch."""

from .._keys import (
    OWN as OWN,
    REQUIRED as REQUIRED,
    Key as Key,
    keys_of as keys_of,
    record as record,
    unknown_keys as unknown_keys,
    write_keys as write_keys,
)
from .._kinds import (
    Kind as Kind,
    Problems as Problems,
    annotated as annotated,
    anything as anything,
    boolean as boolean,
    checked as checked,
    either as either,
    factor as factor,
    integer as integer,
    items as items,
    mapping as mapping,
    number as number,
    only as only,
    optional as optional,
    pair as pair,
    positive as positive,
    real as real,
    text as text,
    token_ids as token_ids,
    whole as whole,
    without as without,
)
from .._shown import shown as shown
from .._table import frozen as frozen
from ._build import build as build
from ._configuration import read_keys as read_keys
from ._describe import Checkpoint as Checkpoint, describe as describe
from ._dialect import (
    Architecture as Architecture,
    Dialect as Dialect,
    architectures as architectures,
)
from ._errors import CheckpointError as CheckpointError
from ._generation import (
    GenerationSettings as GenerationSettings,
    generation_settings as generation_settings,
)
from ._hub import Place as Place, locate as locate
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
