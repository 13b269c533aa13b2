"""ssmkit: state-space models, written once, run anywhere XLA does."""

from . import _config


if _config.typecheck_requested():
    _config.install_typechecker()

from . import kernels as kernels
from ._coefficients import Coefficients as Coefficients
from ._conv import CausalConv1d as CausalConv1d
from ._language_model import AbstractLanguageModel as AbstractLanguageModel
from ._language_model import AbstractResidualLanguageModel as AbstractResidualLanguageModel
from ._layers import Embedding as Embedding
from ._layers import GatedRMSNorm as GatedRMSNorm
from ._layers import Linear as Linear
from ._layers import RMSNorm as RMSNorm
from ._mixer import AbstractMixer as AbstractMixer
from ._mixer import AbstractRecurrentMixer as AbstractRecurrentMixer
from ._mixer import Advance as Advance
from ._mixer import ResidualBlock as ResidualBlock
from ._operator import AbstractSequenceOperator as AbstractSequenceOperator
from ._recurrence import DiagonalChunkedRecurrence as DiagonalChunkedRecurrence
from ._generate import Generation as Generation
from ._generate import generate as generate
from ._generate import resume as resume
from ._generate import stream as stream
from ._sampling import AbstractSampler as AbstractSampler
from ._sampling import Greedy as Greedy
from ._sampling import Sampler as Sampler
from ._score import Score as Score
from ._score import cross_entropy as cross_entropy
from ._score import score as score
from ._text import Tokenizer as Tokenizer
from .checkpoint import CheckpointError as CheckpointError
from .checkpoint import from_pretrained as from_pretrained
from .checkpoint import save_pretrained as save_pretrained
