"""Published hybrids of recurrences and attention: each is a configuration of parts, and their places in files."""

from .bamba import BambaConfig as BambaConfig
from .falcon_h1 import FalconH1Config as FalconH1Config
from .granitemoehybrid import GraniteMoeHybridConfig as GraniteMoeHybridConfig
from .jamba import JambaConfig as JambaConfig
from .lfm2 import Lfm2Config as Lfm2Config
from .lfm2_moe import Lfm2MoeConfig as Lfm2MoeConfig
from .mamba2_attention import Mamba2AttentionConfig as Mamba2AttentionConfig
from .nemotron_h import NemotronHConfig as NemotronHConfig
from .recurrent_gemma import RecurrentGemmaConfig as RecurrentGemmaConfig
from .xlstm import XLSTMConfig as XLSTMConfig
from .zamba2 import Zamba2Config as Zamba2Config
