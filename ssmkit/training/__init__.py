"""A small training loop. It needs the extra `train` (`pip install 'ssmkit[train]'`)."""

from . import _extra as _extra  # first: without optax, it names the extra
from ._config import TrainConfig as TrainConfig
from ._data import Windows as Windows
from ._loop import Progress as Progress, fit as fit
from ._optimizer import make_optimizer as make_optimizer
from ._report import LossCurve as LossCurve
from ._run import train_files as train_files
from ._state import TrainState as TrainState
