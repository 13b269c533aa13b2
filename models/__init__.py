"""Models written against the public names of `ssmkit`."""

from .gla import GLACache as GLACache, GLAMixer as GLAMixer, GLARecurrence as GLARecurrence
from .hgrn2 import HGRN2Cache as HGRN2Cache, HGRN2Mixer as HGRN2Mixer, HGRN2Recurrence as HGRN2Recurrence
from .hgrn2_model import HGRN2 as HGRN2
from .lru import LRUMixer as LRUMixer, LRURecurrence as LRURecurrence
from .mamba import (
    Mamba as Mamba,
    MambaCache as MambaCache,
    MambaConfig as MambaConfig,
    MambaMixer as MambaMixer,
    MambaRecurrence as MambaRecurrence,
)
from .mamba2 import (
    Mamba2Cache as Mamba2Cache,
    Mamba2Mixer as Mamba2Mixer,
    Mamba2Recurrence as Mamba2Recurrence,
)
from .mamba2_model import Mamba2 as Mamba2, Mamba2Config as Mamba2Config
from .mamba3 import (
    Mamba3Cache as Mamba3Cache,
    Mamba3Mixer as Mamba3Mixer,
    Mamba3Recurrence as Mamba3Recurrence,
)
from .mlstm import MLSTMCache as MLSTMCache, MLSTMMixer as MLSTMMixer, MLSTMRecurrence as MLSTMRecurrence
from .retnet import RetNetCache as RetNetCache, RetNetMixer as RetNetMixer, RetNetRecurrence as RetNetRecurrence
from .rg_lru import RGLRUCache as RGLRUCache, RGLRUMixer as RGLRUMixer, RGLRURecurrence as RGLRURecurrence
from .rwkv6 import RWKV6Cache as RWKV6Cache, RWKV6Mixer as RWKV6Mixer, RWKV6Recurrence as RWKV6Recurrence
from .rwkv6_channel import RWKV6ChannelMixer as RWKV6ChannelMixer
from .s5 import S5Mixer as S5Mixer, S5Recurrence as S5Recurrence
from .shared_transformers import (
    SharedTransformerCache as SharedTransformerCache,
    SharedTransformerStack as SharedTransformerStack,
)
from .short_conv import ShortConvMixer as ShortConvMixer
from .toy import ToySSM as ToySSM
