"""Models written against the public names of `ssmkit`."""

from .mamba2 import Mamba2 as Mamba2
from .mamba2 import Mamba2Cache as Mamba2Cache
from .mamba2 import Mamba2Config as Mamba2Config
from .mamba2 import Mamba2Mixer as Mamba2Mixer
from .mamba2 import Mamba2Recurrence as Mamba2Recurrence
from .toy import ToySSM as ToySSM
