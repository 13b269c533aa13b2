"""The public names of `ssmkit`, and the modules that they come from; `__init__.py` imports each on first use."""

from . import (
    checkpoint as checkpoint,
    compilation as compilation,
    export as export,
    kernels as kernels,
    models as models,
    parallel as parallel,
    testing as testing,
    training as training,
)
from ._construction import checks_arguments as checks_arguments
from ._default_model import default_model_path as default_model_path
from ._extent import Extent as Extent, reverse as reverse
from ._language_model import AbstractLanguageModel as AbstractLanguageModel
from ._model_config import LanguageModelConfig as LanguageModelConfig
from ._products import product as product
from ._residual_model import (
    AbstractResidualLanguageModel as AbstractResidualLanguageModel,
    LanguageModel as LanguageModel,
)
from ._scan_layers import scan_layers as scan_layers, unscan_layers as unscan_layers
from .checkpoint import (
    CheckpointError as CheckpointError,
    build as build,
    from_pretrained as from_pretrained,
    save_pretrained as save_pretrained,
)
from .compilation import Compilation as Compilation, compile_for as compile_for
from .evaluation._score import Score as Score, cross_entropy as cross_entropy, score as score
from .export import (
    ExportedModel as ExportedModel,
    load_exported as load_exported,
    save_exported as save_exported,
)
from .generation import rows as rows
from .generation._cache_file import load_cache as load_cache, save_cache as save_cache
from .generation._chat import Chat as Chat, ChatCounts as ChatCounts, chat_stop_tokens as chat_stop_tokens
from .generation._generate import generate as generate, resume as resume
from .generation._requests import Request as Request
from .generation._sampling import AbstractSampler as AbstractSampler, Greedy as Greedy, Sampler as Sampler
from .generation._state import Generation as Generation, Rows as Rows, TextGeneration as TextGeneration
from .generation._stream import Stream as Stream, stream as stream
from .generation.rows import fork as fork
from .kernels._coefficients import Coefficients as Coefficients
from .layers._activations import activation_of as activation_of
from .layers._apart import Apart as Apart, Shared as Shared
from .layers._array_kinds import (
    ArrayKind as ArrayKind,
    array_kinds as array_kinds,
    matrix_mask as matrix_mask,
)
from .layers._dropout import Dropout as Dropout, with_dropout as with_dropout
from .layers._linear import (
    BlockDiagonalLinear as BlockDiagonalLinear,
    Embedding as Embedding,
    Linear as Linear,
    Part as Part,
    silu as silu,
)
from .layers._matrix import Int8Matrix as Int8Matrix
from .layers._norms import (
    GatedRMSNorm as GatedRMSNorm,
    LayerNorm as LayerNorm,
    RMSNorm as RMSNorm,
    ZeroCentredRMSNorm as ZeroCentredRMSNorm,
    rms_normalise as rms_normalise,
)
from .layers._quantize import quantize as quantize
from .mixers._attention import AttentionCache as AttentionCache, AttentionMixer as AttentionMixer
from .mixers._mixer import (
    AbstractBlock as AbstractBlock,
    AbstractMixer as AbstractMixer,
    AbstractRecurrentMixer as AbstractRecurrentMixer,
    Advance as Advance,
    ResidualBlock as ResidualBlock,
)
from .mixers._mlp import MLP as MLP, GatedMLP as GatedMLP
from .mixers._moe import MixtureOfExperts as MixtureOfExperts
from .mixers._parallel import ParallelMixer as ParallelMixer
from .mixers._scanned import ScannedBlocks as ScannedBlocks
from .operators._attention import (
    Attention as Attention,
    AttentionInputs as AttentionInputs,
    AttentionState as AttentionState,
)
from .operators._conv import CausalConv1d as CausalConv1d, convolve_parts as convolve_parts
from .operators._operator import AbstractSequenceOperator as AbstractSequenceOperator
from .operators._recurrence import DiagonalChunkedRecurrence as DiagonalChunkedRecurrence
from .operators._running import (
    Gates as Gates,
    RunningPhase as RunningPhase,
    StabilisedGates as StabilisedGates,
    Stabiliser as Stabiliser,
)
from .operators._shift import Shift as Shift
from .parallel import fully_shard as fully_shard, shard as shard
from .text._tokenizer import Tokenizer as Tokenizer

__version__: str
