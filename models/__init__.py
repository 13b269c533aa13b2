"""Models written against the public names of `ssmkit`."""

from .mamba import (
    Mamba as Mamba,
    MambaCache as MambaCache,
    MambaConfig as MambaConfig,
    MambaMixer as MambaMixer,
    MambaRecurrence as MambaRecurrence,
)
from .mamba2 import (
    Mamba2 as Mamba2,
    Mamba2Cache as Mamba2Cache,
    Mamba2Config as Mamba2Config,
    Mamba2Mixer as Mamba2Mixer,
    Mamba2Recurrence as Mamba2Recurrence,
)
from .toy import ToySSM as ToySSM
