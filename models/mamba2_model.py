"""The Mamba-2 language model (arXiv 2405.21060) and its configuration."""

import dataclasses
import functools
import math
from typing import Annotated, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import DTypeLike, PRNGKeyArray

import ssmkit

from ._config import FOLLOWS
from ._mamba_family import AbstractMambaConfig, language_model_parts
from .mamba2 import Mamba2Cache, Mamba2Mixer, contradictions, implied_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class AbstractMamba2Config(AbstractMambaConfig):
    """The keys of models with Mamba-2 mixers; the docstring of `Mamba2Config` describes them."""

    state_size: int = 128
    head_dim: int = 64
    num_heads: int = FOLLOWS
    n_groups: int = 1
    chunk_size: int = 256
    tie_word_embeddings: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    D_has_hdim: bool = False
    d_ssm: int = FOLLOWS
    rmsnorm: bool = True
    norm_before_gate: bool = False

    @property
    def intermediate_size(self) -> int:
        """The number of channels of a mixer."""
        return int(self.expand * self.hidden_size)

    def implied_by_mixer(self) -> dict[str, int]:
        """The default sizes, as in `Mamba2Mixer`."""
        return implied_sizes(self.intermediate_size, self.d_ssm, self.head_dim)

    def contradictions_of_mixer(self) -> list[str]:
        """Messages if the heads do not make up the channels of the SSM, or the groups do not divide the heads."""
        sizes = self.d_ssm, self.num_heads, self.head_dim, self.n_groups
        return contradictions("`expand` * `hidden_size`", self.intermediate_size, *sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(AbstractMamba2Config):
    """The geometry of a Mamba-2 language model, under the key names of HF transformers' `Mamba2Config`.

    Defaults are those of the published state-spaces models, not of HF's class (whose defaults are Codestral's).

    **Arguments:**

    - `vocab_size`: the number of ids that can be produced. The embedding has `padded_vocab_size` rows.
    - `hidden_size`, `num_hidden_layers`: width and depth.
    - `state_size`, `head_dim`: key and value width of each head's state.
    - `expand`: a mixer has `expand * hidden_size` channels, rounded down.
    - `d_ssm`: the number of channels that the SSM acts on, by default all. A gated MLP acts on the others, as in
        mamba_ssm.
    - `num_heads`: `d_ssm / head_dim`, which may be left out; no other value is accepted.
    - `n_groups`: the number of groups of heads that share B and C.
    - `conv_kernel`: the number of taps of the causal convolution.
    - `chunk_size`: the largest number of tokens per chunk of the scan; results do not depend on it.
    - `use_bias`, `use_conv_bias`: whether the projections and the convolution have biases.
    - `layer_norm_epsilon`: the epsilon of every norm.
    - `rmsnorm`: whether the output of the SSM is normalised, in addition to the gate.
    - `norm_before_gate`: whether that norm comes before the gate, not after it.
    - `rms_norm`: whether the norms before every mixer and before the head are RMS norms; otherwise they are layer
        norms, as in mamba_ssm.
    - `d_intermediate`: the number of hidden units, rounded up to a multiple of 128, of a gated MLP after every mixer,
        in its own residual branch, as in mamba_ssm; 0 for no MLP.
    - `residual_in_fp32`: whether the residual stream stays float32 when weights are narrower.
    - `time_step_min`, `time_step_max`, `time_step_floor`: the range of the initial step sizes.
    - `time_step_limit`: step sizes are clipped to this range, in `step` and `prefill` alike.
    - `tie_word_embeddings`: whether the head is the embedding.
    - `pad_vocab_size_multiple`: rows of the embedding are a multiple of this; padding rows are never produced.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: ids of special tokens: one, several, or `None`. A text ends with
        any `eos_token_id`; the other ids are stored without effect.
    - `D_has_hdim`: whether there is one skip weight per channel, not one per head.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    def implied(self) -> dict[str, int]:
        """As `AbstractCheckedConfig.implied`."""
        return self.implied_by_mixer()

    def contradictions(self) -> list[str]:
        """As `AbstractCheckedConfig.contradictions`."""
        return self.contradictions_of_mixer()


# The keys of a configuration that are keywords of its mixers.
MIXER_KEYS = """
    state_size head_dim num_heads n_groups expand d_ssm conv_kernel chunk_size use_bias use_conv_bias rmsnorm
    norm_before_gate D_has_hdim time_step_min time_step_max time_step_floor time_step_limit
""".split()


class Mamba2(ssmkit.AbstractResidualLanguageModel[Mamba2Cache]):
    """A Mamba-2 language model."""

    config: Mamba2Config = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm | ssmkit.LayerNorm
    head: Annotated[ssmkit.Linear, ssmkit.ArrayKind.HEAD] | None

    def __init__(self, config: Mamba2Config, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Initialise at random, as the paper's code; output projections are scaled by $1/\\sqrt{layers}$.

        **Arguments:**

        - `config`: the geometry.
        - `key`: the key for the initialisation.
        - `dtype`: the dtype of the projections, embedding and convolution; the rest stays float32.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        keywords = {name: getattr(config, name) for name in MIXER_KEYS}
        mixer = functools.partial(
            Mamba2Mixer, config.hidden_size, norm_eps=config.layer_norm_epsilon, dtype=dtype, **keywords
        )
        self.embedding, self.blocks, self.norm, self.head = language_model_parts(
            config, mixer, tied=config.tie_word_embeddings, key=key, dtype=dtype
        )
