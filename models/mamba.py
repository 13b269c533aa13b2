"""Mamba (arXiv 2312.00752), and FalconMamba (arXiv 2410.05355)."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._mamba_family import AbstractMambaConfig, initial_dt_bias, is_number, language_model_parts


@dataclasses.dataclass(frozen=True)
class MambaConfig(AbstractMambaConfig):
    """Geometry of a Mamba language model, under the key names of HF transformers' `MambaConfig`.

    Defaults are those of the mamba_ssm package.

    **Arguments:**

    - `vocab_size`: ids that can be produced. The embedding has `padded_vocab_size` rows.
    - `hidden_size`, `num_hidden_layers`: width and depth.
    - `state_size`: numbers that each channel remembers.
    - `intermediate_size`: channels of a mixer; `expand * hidden_size`, rounded down, when `None`. It overrides
        `expand`, as in HF.
    - `conv_kernel`: taps of the causal convolution.
    - `time_step_rank`: of the map from a mixer's channels to their step sizes; `hidden_size / 16`, rounded up, when
        `None`.
    - `chunk_size`: the most tokens per chunk of the scan, `None` to leave it to the backend; results do not depend on
        it.
    - `use_bias`, `use_conv_bias`: biases of the outer projections and of the convolution.
    - `layer_norm_epsilon`: of the norms before every mixer and before the head.
    - `mixer_rms_eps`: of the norms of the step sizes' inputs, B and C, which FalconMamba adds; `None` for none.
    - `rms_norm`: whether those are RMS norms; layer norms otherwise, as mamba_ssm has them.
    - `d_intermediate`: hidden units, rounded up to a multiple of 128, of a gated MLP that follows every mixer in a
        residual branch of its own, as in mamba_ssm; 0 for no MLP.
    - `residual_in_fp32`: keep the residual stream in float32 when weights are narrower.
    - `time_step_min`, `time_step_max`, `time_step_floor`: range of the initial step sizes.
    - `tie_word_embeddings`: the head is the embedding.
    - `pad_vocab_size_multiple`: rows of the embedding are a multiple of this; padding rows are never produced.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: ids of special tokens: one, several, or `None`. A text
        ends with any `eos_token_id`; the others are only remembered.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    state_size: int = 16
    tie_word_embeddings: bool = True
    intermediate_size: int | None = None
    time_step_rank: int | None = None
    chunk_size: int | None = None
    mixer_rms_eps: float | None = None

    def __post_init__(self):
        self.freeze_lists()
        problems = self.problems()
        for name in ("intermediate_size", "time_step_rank", "chunk_size"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                problems.append(f"`{name}` must be an integer, at least 1, or None, got {value!r}")
        if self.mixer_rms_eps is not None and not (is_number(self.mixer_rms_eps) and self.mixer_rms_eps > 0):
            problems.append(f"`mixer_rms_eps` must be above 0, or None, got {self.mixer_rms_eps}")
        if not problems and self.inner_size < 1:
            problems.append(f"`expand` * `hidden_size` must be at least 1, got {self.expand} * {self.hidden_size}")
        self.refuse(problems)
        object.__setattr__(self, "intermediate_size", self.inner_size)
        object.__setattr__(self, "time_step_rank", self.dt_rank)

    @property
    def inner_size(self) -> int:
        """Channels of a mixer: `intermediate_size`, known to be an integer."""
        return int(self.expand * self.hidden_size) if self.intermediate_size is None else self.intermediate_size

    @property
    def dt_rank(self) -> int:
        """`time_step_rank`, known to be an integer."""
        return -(-self.hidden_size // 16) if self.time_step_rank is None else self.time_step_rank


class MambaInputs(eqx.Module):
    """What the recurrence sees of one token; a leading `time` axis for many."""

    x: Float[Array, "*time channel"]
    dt: Float[Array, "*time channel"]
    B: Float[Array, "*time key"]
    C: Float[Array, "*time key"]


class MambaRecurrence(ssmkit.DiagonalChunkedRecurrence[MambaInputs]):
    r"""S6, the selective scan (algorithm 2): in each channel $d$, with a state $h$ of `key` numbers,

    $$h_t = e^{\Delta_t A} \odot h_{t-1} + \Delta_t B_t x_t, \qquad y_t = C_t^\top h_t.$$

    $\Delta = \operatorname{softplus}(dt + b)$ and $A = -e^{A_{log}}$, both float32. Heads are channels, with values of
    one number; the decay is of each channel and key, B and C are shared by all channels.
    """

    A_log: Float[Array, "channel key"]
    dt_bias: Float[Array, " channel"]
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, config: MambaConfig, *, key: PRNGKeyArray):
        """A is -1, -2, .. in every channel (S4D-Real); step sizes are log-uniform, as the paper's code."""
        channels, size = config.inner_size, config.state_size
        self.A_log = jnp.tile(jnp.log(jnp.arange(1, size + 1, dtype=jnp.float32)), (channels, 1))
        self.dt_bias = initial_dt_bias(channels, *config.time_step_range, key=key)
        self.state_shape = (channels, size, 1)
        self.chunk_size = config.chunk_size

    def coefficients(self, inputs: MambaInputs) -> ssmkit.Coefficients:
        """The equations above."""
        dt = jax.nn.softplus(inputs.dt + self.dt_bias)
        return ssmkit.Coefficients(
            log_decay=-jnp.exp(self.A_log) * dt[:, None],
            write=inputs.B[None],
            value=(dt * inputs.x)[:, None],
            read=inputs.C[None],
        )


class MambaCache(eqx.Module):
    """Everything a Mamba mixer remembers: constant in the number of tokens."""

    window: Float[Array, "*batch window channel"]
    state: Float[Array, "*batch channel key value"]


class MambaMixer(ssmkit.AbstractRecurrentMixer[MambaCache]):
    r"""Projection, causal convolution, selective scan, skip, gate, projection (arXiv 2312.00752, figure 3).

    With $[x, z] = W_{in} u$, $x' = \operatorname{silu}(\operatorname{conv}(x))$ and $[\delta, B, C] = W_x x'$,

    $$y = W_{out} ((\operatorname{S6}(x', W_\Delta \delta, B, C) + D \odot x') \odot \operatorname{silu}(z)).$$

    FalconMamba divides each of $\delta$, B and C by its root mean square first (arXiv 2410.05355).
    """

    in_proj: ssmkit.Linear
    conv: ssmkit.CausalConv1d
    x_proj: ssmkit.Linear
    dt_proj: ssmkit.Linear
    recurrence: MambaRecurrence
    D: Float[Array, " channel"]
    out_proj: ssmkit.Linear
    mixer_rms_eps: float | None = eqx.field(static=True)

    def __init__(self, config: MambaConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Parameters of the recurrence and D stay float32 whatever `dtype` is."""
        keys = jax.random.split(key, 6)
        inner, width, rank = config.inner_size, config.hidden_size, config.dt_rank
        self.in_proj = ssmkit.Linear(width, 2 * inner, use_bias=config.use_bias, dtype=dtype, key=keys[0])
        self.conv = ssmkit.CausalConv1d(
            inner, config.conv_kernel, use_bias=config.use_conv_bias, dtype=dtype, key=keys[1]
        )
        self.x_proj = ssmkit.Linear(inner, rank + 2 * config.state_size, dtype=dtype, key=keys[2])
        self.dt_proj = ssmkit.Linear(rank, inner, dtype=dtype, key=keys[3])
        self.recurrence = MambaRecurrence(config, key=keys[4])
        self.D = jnp.ones((inner,), jnp.float32)
        self.out_proj = ssmkit.Linear(inner, width, use_bias=config.use_bias, dtype=dtype, key=keys[5])
        self.mixer_rms_eps = config.mixer_rms_eps

    def init_cache(self) -> MambaCache:
        """An empty window and a zero state, float32."""
        return MambaCache(window=self.conv.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: MambaCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], MambaCache]:
        """The equations above, for many tokens or one."""
        size, eps = self.recurrence.state_shape[1], self.mixer_rms_eps
        x, z = jnp.split(self.in_proj(x), 2, axis=-1)
        x, window = advance(self.conv, x, cache.window)
        x = ssmkit.silu(x)
        projected = self.x_proj(x)
        parts = jnp.split(projected, [projected.shape[-1] - 2 * size, projected.shape[-1] - size], axis=-1)
        dt, B, C = parts if eps is None else [ssmkit.rms_normalise(part, eps=eps) for part in parts]
        inputs = MambaInputs(x=x, dt=self.dt_proj(dt), B=B, C=C)
        y, state = advance(self.recurrence, inputs, cache.state)
        y = (y[..., 0] + jnp.broadcast_to(self.D, x.shape) * x) * ssmkit.silu(z)
        return self.out_proj(y), MambaCache(window=window, state=state)


class Mamba(ssmkit.AbstractResidualLanguageModel[MambaCache]):
    """A Mamba language model."""

    config: MambaConfig = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm | ssmkit.LayerNorm
    head: ssmkit.Linear | None

    def __init__(self, config: MambaConfig, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Random initialisation as the paper's code; output projections are scaled by $1/\\sqrt{layers}$.

        **Arguments:**

        - `config`: the geometry.
        - `key`: for the initialisation.
        - `dtype`: of the projections, embedding and convolution; the rest stays float32.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        self.embedding, self.blocks, self.norm, self.head = language_model_parts(
            config, MambaMixer, key=key, dtype=dtype
        )
