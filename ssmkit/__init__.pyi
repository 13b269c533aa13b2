"""The public names of `ssmkit`, and the modules that they come from; `__init__.py` imports each on first use."""

from . import (
    checkpoint as checkpoint,
    export as export,
    kernels as kernels,
    models as models,
    testing as testing,
    training as training,
)
from ._cache_file import load_cache as load_cache, save_cache as save_cache
from ._coefficients import Coefficients as Coefficients
from ._conv import CausalConv1d as CausalConv1d
from ._default_model import default_model_path as default_model_path
from ._engine import Generation as Generation
from ._generate import generate as generate, resume as resume, stream as stream
from ._language_model import (
    AbstractLanguageModel as AbstractLanguageModel,
    AbstractResidualLanguageModel as AbstractResidualLanguageModel,
    LanguageModel as LanguageModel,
)
from ._layers import (
    BlockDiagonalLinear as BlockDiagonalLinear,
    Embedding as Embedding,
    Linear as Linear,
    matrix_mask as matrix_mask,
    silu as silu,
)
from ._matrix import Int8Matrix as Int8Matrix
from ._mixer import (
    AbstractBlock as AbstractBlock,
    AbstractMixer as AbstractMixer,
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    Advance as Advance,
    ResidualBlock as ResidualBlock,
)
from ._mlp import GatedMLP as GatedMLP
from ._norms import (
    GatedRMSNorm as GatedRMSNorm,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
    rms_normalise as rms_normalise,
)
from ._operator import AbstractSequenceOperator as AbstractSequenceOperator
from ._quantize import quantize as quantize
from ._recurrence import DiagonalChunkedRecurrence as DiagonalChunkedRecurrence
from ._running import (
    Gates as Gates,
    RunningPhase as RunningPhase,
    StabilisedGates as StabilisedGates,
    Stabiliser as Stabiliser,
)
from ._sampling import AbstractSampler as AbstractSampler, Greedy as Greedy, Sampler as Sampler
from ._score import Score as Score, cross_entropy as cross_entropy, score as score
from ._shift import Shift as Shift
from ._text import Tokenizer as Tokenizer
from .checkpoint import (
    CheckpointError as CheckpointError,
    from_pretrained as from_pretrained,
    save_pretrained as save_pretrained,
)
from .export import (
    ExportedModel as ExportedModel,
    load_exported as load_exported,
    save_exported as save_exported,
)

__version__: str
