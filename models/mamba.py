"""Mamba (arXiv 2312.00752), and FalconMamba (arXiv 2410.05355)."""

import dataclasses
import functools
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._config import FOLLOWS
from ._mamba_family import AbstractMambaConfig, language_model_parts
from ._time_steps import initial_dt_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class MambaConfig(AbstractMambaConfig):
    """The geometry of a Mamba language model, under the key names of HF transformers' `MambaConfig`.

    Defaults are those of the mamba_ssm package.

    **Arguments:**

    - `vocab_size`: the number of ids that can be produced. The embedding has `padded_vocab_size` rows.
    - `hidden_size`, `num_hidden_layers`: width and depth.
    - `state_size`: the size of each channel's state.
    - `intermediate_size`: the number of channels of a mixer; by default `expand * hidden_size`, rounded down. It
        overrides `expand`, as in HF.
    - `conv_kernel`: the number of taps of the causal convolution.
    - `time_step_rank`: the rank of the map from a mixer's channels to their step sizes; by default
        `hidden_size / 16`, rounded up.
    - `chunk_size`: the largest number of tokens per chunk of the scan; with `None` the backend chooses. Results do not
        depend on it.
    - `use_bias`, `use_conv_bias`: whether the outer projections and the convolution have biases.
    - `layer_norm_epsilon`: the epsilon of the norms before every mixer and before the head.
    - `mixer_rms_eps`: the epsilon of the norms of the step sizes' inputs, B and C, which FalconMamba adds; `None` for
        no such norms.
    - `rms_norm`: whether the norms before every mixer and before the head are RMS norms; otherwise they are layer
        norms, as in mamba_ssm.
    - `d_intermediate`: the number of hidden units, rounded up to a multiple of 128, of a gated MLP after every mixer,
        in its own residual branch, as in mamba_ssm; 0 for no MLP.
    - `residual_in_fp32`: whether the residual stream stays float32 when weights are narrower.
    - `time_step_min`, `time_step_max`, `time_step_floor`: the range of the initial step sizes.
    - `tie_word_embeddings`: whether the head is the embedding.
    - `pad_vocab_size_multiple`: rows of the embedding are a multiple of this; padding rows are never produced.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: ids of special tokens: one, several, or `None`. A text ends with
        any `eos_token_id`; the other ids are stored without effect.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    state_size: int = 16
    tie_word_embeddings: bool = True
    intermediate_size: int = FOLLOWS
    time_step_rank: int = FOLLOWS
    chunk_size: int | None = None
    mixer_rms_eps: float | None = None

    def implied(self) -> dict[str, int]:
        """The default sizes, as in `MambaMixer`."""
        return _implied_sizes(self.hidden_size, self.expand)

    def contradictions(self) -> list[str]:
        """A message if a mixer has no channel."""
        if self.intermediate_size < 1:
            return [f"`expand` * `hidden_size` must be at least 1, got {self.expand} * {self.hidden_size}"]
        return []


def _implied_sizes(width: int, expand: int | float) -> dict[str, int]:
    return {"intermediate_size": int(expand * width), "time_step_rank": -(-width // 16)}


class MambaInputs(eqx.Module):
    """The inputs of the recurrence for one token; many tokens have a leading `time` axis."""

    x: Float[Array, "*time channel"]
    dt: Float[Array, "*time channel"]
    B: Float[Array, "*time key"]
    C: Float[Array, "*time key"]


class MambaRecurrence(ssmkit.DiagonalChunkedRecurrence[MambaInputs]):
    r"""S6, the selective scan (algorithm 2). In each channel $d$, with a state $h$ of `key` numbers,

    $$h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t B_t x_t, \qquad y_t = C_t^\top h_t.$$

    Here $\Delta = \operatorname{softplus}(dt + b)$ and $A = -e^{A_{log}}$, both float32. Heads are channels, with
    values of size 1. Each channel and key has its own decay; all channels share B and C.
    """

    A_log: Float[Array, "channel key"]
    dt_bias: Float[Array, " channel"]
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: MambaInputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        dt = jax.nn.softplus(inputs.dt + self.dt_bias)
        return ssmkit.Coefficients(
            log_decay=-jnp.exp(self.A_log) * dt[:, None],
            write=inputs.B[None],
            value=(dt * inputs.x)[:, None],
            read=inputs.C[None],
        )


class MambaCache(eqx.Module):
    """The cache of a Mamba mixer. Its size does not depend on the number of tokens."""

    window: Float[Array, "*batch window channel"]
    state: Float[Array, "*batch channel key value"]


class MambaMixer(ssmkit.AbstractRecurrentMixer[MambaCache]):
    r"""The Mamba mixer: projection, causal convolution, selective scan, skip, gate, projection (figure 3).

    With $[x, z] = W_{in} u$, $x' = \operatorname{silu}(\operatorname{conv}(x))$ and $[\delta, B, C] = W_x x'$,

    $$y = W_{out} ((\operatorname{S6}(x', W_\Delta \delta, B, C) + D \odot x') \odot \operatorname{silu}(z)).$$

    FalconMamba divides each of $\delta$, B and C by its root mean square first (arXiv 2410.05355). Jamba also
    multiplies each of them by weights (arXiv 2403.19887).
    """

    in_proj: ssmkit.Linear | ssmkit.Apart
    conv: ssmkit.CausalConv1d
    x_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    dt_proj: ssmkit.Linear
    dt_norm: ssmkit.RMSNorm | None
    B_norm: ssmkit.RMSNorm | None
    C_norm: ssmkit.RMSNorm | None
    recurrence: MambaRecurrence
    D: Float[Array, " channel"]
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    mixer_rms_eps: float | None = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 16,
        expand: float = 2,
        intermediate_size: int | None = None,
        conv_kernel: int = 4,
        time_step_rank: int | None = None,
        chunk_size: int | None = None,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        mixer_rms_eps: float | None = None,
        use_mixer_rms_weights: bool = False,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise as the paper's code: A is -1, -2, .. in every channel (S4D-Real); step sizes are log-uniform.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`, `conv_kernel`, `chunk_size`, `use_bias`, `use_conv_bias`, `mixer_rms_eps`, `time_step_min`,
            `time_step_max`, `time_step_floor`: as `MambaConfig`.
        - `intermediate_size`: the number of channels; `expand * width`, rounded down, when `None`.
        - `use_mixer_rms_weights`: whether the norms of `mixer_rms_eps` have weights.
        - `time_step_rank`: as `MambaConfig`; `width / 16`, rounded up, when `None`.
        - `dtype`: the dtype of projections and convolution; the parameters of the recurrence and D stay float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range.
        """
        implied = _implied_sizes(width, expand)
        inner = implied["intermediate_size"] if intermediate_size is None else intermediate_size
        rank = implied["time_step_rank"] if time_step_rank is None else time_step_rank
        if inner < 1:
            raise ValueError(f"`expand` * `width` must be at least 1, got {expand} * {width}.")
        if mixer_rms_eps is not None and mixer_rms_eps <= 0:
            raise ValueError(f"`mixer_rms_eps` must be above 0, or None, got {mixer_rms_eps}.")
        if mixer_rms_eps is None and use_mixer_rms_weights:
            raise ValueError("`use_mixer_rms_weights` must be False without `mixer_rms_eps`, got True.")
        keys = jax.random.split(key, 6)
        halves = 2 * [ssmkit.Part(inner, inner)]
        self.in_proj = ssmkit.Linear(width, 2 * inner, use_bias=use_bias, parts=halves, dtype=dtype, key=keys[0])
        self.conv = ssmkit.CausalConv1d(inner, conv_kernel, use_bias=use_conv_bias, dtype=dtype, key=keys[1])
        self.x_proj = ssmkit.Linear(inner, rank + 2 * state_size, dtype=dtype, key=keys[2])
        self.dt_proj = ssmkit.Linear(rank, inner, dtype=dtype, key=keys[3])
        self.recurrence = MambaRecurrence(
            A_log=jnp.tile(jnp.log(jnp.arange(1, state_size + 1, dtype=jnp.float32)), (inner, 1)),
            dt_bias=initial_dt_bias(inner, time_step_min, time_step_max, time_step_floor, key=keys[4]),
            state_shape=(inner, state_size, 1),
            chunk_size=chunk_size,
        )
        self.D = jnp.ones((inner,), jnp.float32)
        self.out_proj = ssmkit.Linear(inner, width, use_bias=use_bias, dtype=dtype, key=keys[5])
        self.mixer_rms_eps = mixer_rms_eps
        self.dt_norm = self.B_norm = self.C_norm = None
        if mixer_rms_eps is not None and use_mixer_rms_weights:
            norms = (ssmkit.RMSNorm(size, eps=mixer_rms_eps) for size in (rank, state_size, state_size))
            self.dt_norm, self.B_norm, self.C_norm = norms

    def init_cache(self) -> MambaCache:
        """An empty window and a zero state, float32."""
        return MambaCache(window=self.conv.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: MambaCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], MambaCache]:
        """The equations of the class, for many tokens or for one."""
        size = self.recurrence.state_shape[1]
        x, z = self.in_proj.split(x)
        x, window = advance(self.conv, x, cache.window)
        x = ssmkit.silu(x)
        projected = self.x_proj(x)
        parts = jnp.split(projected, [projected.shape[-1] - 2 * size, projected.shape[-1] - size], axis=-1)
        dt, B, C = self._normalised(parts)
        inputs = MambaInputs(x=x, dt=self.dt_proj(dt), B=B, C=C)
        y, state = advance(self.recurrence, inputs, cache.state)
        y = (y[..., 0] + jnp.broadcast_to(self.D, x.shape) * x) * ssmkit.silu(z)
        return self.out_proj(y), MambaCache(window=window, state=state)

    def _normalised(self, parts: list[Array]) -> list[Array]:
        eps = self.mixer_rms_eps
        if eps is None:
            return parts
        norms = (self.dt_norm, self.B_norm, self.C_norm)
        apply = lambda norm, part: ssmkit.rms_normalise(part, eps=eps) if norm is None else norm(part)
        return [apply(*pair) for pair in zip(norms, parts, strict=True)]


# The keys of a configuration that are keywords of its mixers.
_MIXER_KEYS = """
    state_size intermediate_size conv_kernel time_step_rank chunk_size use_bias use_conv_bias mixer_rms_eps
    time_step_min time_step_max time_step_floor
""".split()


class Mamba(ssmkit.AbstractResidualLanguageModel[MambaCache]):
    """A Mamba language model."""

    config: MambaConfig = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm | ssmkit.LayerNorm
    head: Annotated[ssmkit.Linear, ssmkit.ArrayKind.HEAD] | None

    def __init__(self, config: MambaConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Initialise at random, as the paper's code; output projections are scaled by $1/\\sqrt{layers}$.

        **Arguments:**

        - `config`: the geometry.
        - `key`: the key for the initialisation.
        - `dtype`: the dtype of the projections, embedding and convolution; the rest stays float32.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        keywords = {name: getattr(config, name) for name in _MIXER_KEYS}
        mixer = functools.partial(MambaMixer, config.hidden_size, dtype=dtype, **keywords)
        self.embedding, self.blocks, self.norm, self.head = language_model_parts(
            config, mixer, tied=config.tie_word_embeddings, key=key, dtype=dtype
        )
