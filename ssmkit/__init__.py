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
