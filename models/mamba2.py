"""Mamba-2 (arXiv 2405.21060)."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._mamba_family import AbstractMambaConfig, initial_dt_bias, language_model_parts


@dataclasses.dataclass(frozen=True)
class Mamba2Config(AbstractMambaConfig):
    """Geometry of a Mamba-2 language model, under the key names of HF transformers' `Mamba2Config`.

    Defaults are those of the published state-spaces models, not of HF's class (whose defaults are Codestral's).

    **Arguments:**

    - `vocab_size`: ids that can be produced. The embedding has `padded_vocab_size` rows.
    - `hidden_size`, `num_hidden_layers`: width and depth.
    - `state_size`, `head_dim`: key and value width of each head's state.
    - `expand`: a mixer has `expand * hidden_size` channels, rounded down.
    - `d_ssm`: how many of them the SSM acts on; the others are a gated MLP beside it, as in mamba_ssm. All when `None`.
    - `num_heads`: `d_ssm / head_dim` when `None`; no other value is accepted.
    - `n_groups`: heads share B and C within a group.
    - `conv_kernel`: taps of the causal convolution.
    - `chunk_size`: the most tokens per chunk of the scan; results do not depend on it.
    - `use_bias`, `use_conv_bias`: biases of the projections and of the convolution.
    - `layer_norm_epsilon`: of every norm.
    - `rmsnorm`: whether what the SSM gives is normalised, besides gated.
    - `norm_before_gate`: whether that norm comes before the gate, not after it.
    - `rms_norm`: whether the norms before every mixer and before the head are RMS norms; layer norms otherwise, as
        mamba_ssm has them.
    - `d_intermediate`: hidden units, rounded up to a multiple of 128, of a gated MLP that follows every mixer in a
        residual branch of its own, as in mamba_ssm; 0 for no MLP.
    - `residual_in_fp32`: keep the residual stream in float32 when weights are narrower.
    - `time_step_min`, `time_step_max`, `time_step_floor`: range of the initial step sizes.
    - `time_step_limit`: step sizes are clipped to this range, in `step` and `prefill` alike.
    - `tie_word_embeddings`: the head is the embedding.
    - `pad_vocab_size_multiple`: rows of the embedding are a multiple of this; padding rows are never produced.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: ids of special tokens: one, several, or `None`. A text
        ends with any `eos_token_id`; the others are only remembered.
    - `D_has_hdim`: one skip weight per channel rather than per head.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    state_size: int = 128
    head_dim: int = 64
    num_heads: int | None = None
    n_groups: int = 1
    chunk_size: int = 256
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    D_has_hdim: bool = False
    d_ssm: int | None = None
    rmsnorm: bool = True
    norm_before_gate: bool = False

    def __post_init__(self):
        self.freeze_lists()
        problems = self.problems()
        for name in ("num_heads", "d_ssm"):
            if getattr(self, name) is not None and type(getattr(self, name)) is not int:
                problems.append(f"`{name}` must be an integer, or None, got {getattr(self, name)!r}")
        if not problems:
            if self.d_ssm == self.inner_size:
                object.__setattr__(self, "d_ssm", None)
            if self.num_heads is None:
                object.__setattr__(self, "num_heads", self.heads)
            if not 0 < self.ssm_size <= self.inner_size:
                problems.append(
                    f"`d_ssm` must be in [1, `expand` * `hidden_size` = {self.inner_size}], got {self.ssm_size}"
                )
            elif self.num_heads != self.heads or self.heads * self.head_dim != self.ssm_size:
                what = "`expand` * `hidden_size`" if self.d_ssm is None else "`d_ssm`"
                problems.append(
                    f"`num_heads` * `head_dim` must be {what} = {self.ssm_size}, got {self.num_heads} * "
                    f"{self.head_dim}: choose another `head_dim`"
                )
            elif self.heads % self.n_groups != 0:
                problems.append(f"`n_groups` must divide the {self.heads} heads, got {self.n_groups}")
        self.refuse(problems)

    @property
    def inner_size(self) -> int:
        """Channels of a mixer."""
        return int(self.expand * self.hidden_size)

    @property
    def ssm_size(self) -> int:
        """Channels that the SSM acts on, heads times head_dim: `d_ssm`, known to be an integer."""
        return self.inner_size if self.d_ssm is None else self.d_ssm

    @property
    def heads(self) -> int:
        """Heads of a mixer: `num_heads`, known to be an integer."""
        return self.ssm_size // self.head_dim

    @property
    def conv_size(self) -> int:
        """Channels of the convolution: x, B and C."""
        return self.ssm_size + 2 * self.n_groups * self.state_size


class Mamba2Inputs(eqx.Module):
    """What the recurrence sees of one token; a leading `time` axis for many."""

    x: Float[Array, "*time heads value"]
    B: Float[Array, "*time groups key"]
    C: Float[Array, "*time groups key"]
    dt: Float[Array, "*time heads"]


class Mamba2Recurrence(ssmkit.DiagonalChunkedRecurrence[Mamba2Inputs]):
    r"""$S_t = e^{\Delta_t A} S_{t-1} + \Delta_t B_t x_t^\top$, $y_t = S_t^\top C_t$ per head.

    $\Delta = \operatorname{clip}(\operatorname{softplus}(dt + b), \text{limit})$ and $A = -e^{A_{log}}$, both float32.
    """

    A_log: Float[Array, " heads"]
    dt_bias: Float[Array, " heads"]
    time_step_limit: tuple[float, float] = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, config: Mamba2Config, *, key: PRNGKeyArray):
        """A uniform in [1, 16], step sizes log-uniform in the configured range, as the paper's code."""
        heads = config.heads
        A_key, dt_key = jax.random.split(key)
        self.A_log = jnp.log(jax.random.uniform(A_key, (heads,), jnp.float32, 1.0, 16.0))
        self.dt_bias = initial_dt_bias(heads, *config.time_step_range, key=dt_key)
        self.time_step_limit = config.time_step_limit
        self.state_shape = (heads, config.state_size, config.head_dim)
        self.chunk_size = config.chunk_size

    def coefficients(self, inputs: Mamba2Inputs) -> ssmkit.Coefficients:
        """The equations above."""
        dt = jnp.clip(jax.nn.softplus(inputs.dt + self.dt_bias), *self.time_step_limit)
        return ssmkit.Coefficients(
            log_decay=(-jnp.exp(self.A_log) * dt)[:, None], write=inputs.B, value=dt[:, None] * inputs.x, read=inputs.C
        )


class Mamba2Cache(eqx.Module):
    """Everything a Mamba-2 mixer remembers: constant in the number of tokens."""

    window: Float[Array, "*batch window channel"]
    state: Float[Array, "*batch heads key value"]


class Mamba2Mixer(ssmkit.AbstractRecurrentMixer[Mamba2Cache]):
    r"""Projection, causal convolution, recurrence, skip, gated norm, projection (arXiv 2405.21060, figure 6).

    With $[z, xBC, dt] = W_{in} u$ and $[x, B, C] = \operatorname{silu}(\operatorname{conv}(xBC))$,

    $$y = W_{out} \operatorname{RMSNorm}((\operatorname{SSM}(x, B, C, dt) + D x) \odot \operatorname{silu}(z)).$$

    mamba_ssm knows three changes to it. The norm comes before the gate; or there is none; and where the SSM acts on
    some of the channels alone, $W_{in}$ first makes $z_0$ and $x_0$ for the others, and $W_{out}$ sees
    $[\operatorname{silu}(z_0) \odot x_0, \cdot]$.
    """

    in_proj: ssmkit.Linear
    conv: ssmkit.CausalConv1d
    recurrence: Mamba2Recurrence
    D: Float[Array, " heads"] | Float[Array, "heads value"]
    norm: ssmkit.GatedRMSNorm | ssmkit.RMSNorm | None
    out_proj: ssmkit.Linear
    groups: int = eqx.field(static=True)

    def __init__(self, config: Mamba2Config, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Parameters of the recurrence, D and the norm stay float32 whatever `dtype` is."""
        keys = jax.random.split(key, 4)
        inner, ssm, conv, heads = config.inner_size, config.ssm_size, config.conv_size, config.heads
        linear = lambda rows, columns, key: ssmkit.Linear(columns, rows, use_bias=config.use_bias, dtype=dtype, key=key)
        self.in_proj = linear(2 * inner - ssm + conv + heads, config.hidden_size, keys[0])
        self.conv = ssmkit.CausalConv1d(
            conv, config.conv_kernel, use_bias=config.use_conv_bias, dtype=dtype, key=keys[1]
        )
        self.recurrence = Mamba2Recurrence(config, key=keys[2])
        self.D = jnp.ones((heads, config.head_dim) if config.D_has_hdim else (heads,), jnp.float32)
        norm = ssmkit.RMSNorm if config.norm_before_gate else ssmkit.GatedRMSNorm
        self.norm = norm(ssm, groups=config.n_groups, eps=config.layer_norm_epsilon) if config.rmsnorm else None
        self.out_proj = linear(config.hidden_size, inner, keys[3])
        self.groups = config.n_groups

    def init_cache(self) -> Mamba2Cache:
        """An empty window and a zero state, float32."""
        return Mamba2Cache(window=self.conv.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: Mamba2Cache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Mamba2Cache]:
        """The equations above, for many tokens or one."""
        heads, key, value = self.recurrence.state_shape
        groups, inner = self.groups, heads * value
        axes = x.shape[:-1]

        projected = self.in_proj(x)
        rest = (projected.shape[-1] - heads - 2 * (inner + groups * key)) // 2  # the channels of the MLP
        beside, z, xBC, dt = jnp.split(projected, [2 * rest, 2 * rest + inner, projected.shape[-1] - heads], axis=-1)
        xBC, window = advance(self.conv, xBC, cache.window)
        u, B, C = jnp.split(ssmkit.silu(xBC), [inner, inner + groups * key], axis=-1)
        u = jnp.reshape(u, (*axes, heads, value))
        inputs = Mamba2Inputs(
            x=u, B=jnp.reshape(B, (*axes, groups, key)), C=jnp.reshape(C, (*axes, groups, key)), dt=dt
        )
        y, state = advance(self.recurrence, inputs, cache.state)
        D = self.D if self.D.ndim == 2 else self.D[:, None]
        y = y + jnp.broadcast_to(D, u.shape) * u
        y = self._gated(jnp.reshape(y, (*axes, inner)), z)
        if rest:
            z0, x0 = jnp.split(beside, 2, axis=-1)
            y = jnp.concatenate([ssmkit.silu(z0) * x0, y], axis=-1)
        return self.out_proj(y), Mamba2Cache(window=window, state=state)

    def _gated(
        self, y: Float[Array, "*time channel"], z: Float[Array, "*time channel"]
    ) -> Float[Array, "*time channel"]:
        """Gated by `z`, and normalised after that, before that, or not at all."""
        if isinstance(self.norm, ssmkit.GatedRMSNorm):
            return self.norm(y, gate=z)
        return (y if self.norm is None else self.norm(y)) * ssmkit.silu(z)


class Mamba2(ssmkit.AbstractResidualLanguageModel[Mamba2Cache]):
    """A Mamba-2 language model."""

    config: Mamba2Config = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm | ssmkit.LayerNorm
    head: ssmkit.Linear | None

    def __init__(self, config: Mamba2Config, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Random initialisation as the paper's code; output projections are scaled by $1/\\sqrt{layers}$.

        **Arguments:**

        - `config`: the geometry.
        - `key`: for the initialisation.
        - `dtype`: of the projections, embedding and convolution; the rest stays float32.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        self.embedding, self.blocks, self.norm, self.head = language_model_parts(
            config, Mamba2Mixer, key=key, dtype=dtype
        )
