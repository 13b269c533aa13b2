"""The mLSTM of xLSTM (arXiv 2405.04517), in the layout of xLSTM-7B (arXiv 2503.13427)."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._projections import projection


# Standard deviation sqrt(2 / (5 d)) for d inputs: the authors' `small_init`.
_SMALL = jax.nn.initializers.variance_scaling(0.4, "fan_in", "normal", in_axis=1, out_axis=0)


class MLSTMInputs(eqx.Module):
    """The inputs of the recurrence for one token, with gates from `ssmkit.Stabiliser`; many have a `time` axis."""

    q: Float[Array, "*time heads key"]
    k: Float[Array, "*time heads key"]
    v: Float[Array, "*time heads value"]
    log_decay: Float[Array, "*time heads"]
    log_write: Float[Array, "*time heads"]


class MLSTMRecurrence(ssmkit.DiagonalChunkedRecurrence[MLSTMInputs]):
    r"""$C_t = f_t C_{t-1} + i_t k_t v_t^\top$ and $n_t = f_t n_{t-1} + i_t k_t$ (arXiv 2405.04517, equations 19, 20).

    The normaliser $n$ is the state's last column, whose value is always 1. Outputs are $C^\top q / \sqrt{d}$, followed
    by $n^\top q / \sqrt{d}$, where $d$ is the width of the keys.
    """

    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: MLSTMInputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class.

        **Arguments:**

        - `inputs`: `q` and `k` of shape `(heads, key)`, `v` of `(heads, value - 1)`, gates of `(heads,)`.
        """
        return ssmkit.Coefficients(
            log_decay=inputs.log_decay[:, None],
            write=jnp.exp(inputs.log_write)[:, None] * inputs.k,
            value=jnp.concatenate([inputs.v, jnp.ones_like(inputs.v[:, :1])], axis=-1),
            read=inputs.q * self.state_shape[1] ** -0.5,
        )


class MLSTMCache(eqx.Module):
    """The cache of an mLSTM. The state holds $e^{-m} [C, n]$; $m$ is the sum of the two numbers of `log_scale`."""

    log_scale: Float[Array, "*batch 2 heads"]
    state: Float[Array, "*batch heads key value"]


class MLSTMMixer(ssmkit.AbstractRecurrentMixer[MLSTMCache]):
    r"""The mLSTM layer of xLSTM-7B (arXiv 2503.13427, section 3).

    With gates $\operatorname{cap}(W u + b)$ where $\operatorname{cap}(x) = c \tanh(x / c)$, the recurrence has
    $i = e^{\tilde{i}}$ and $f = \sigma(\tilde{f})$, and

    $$h = \frac{C^\top q}{\max(|n^\top q|, 1) + \epsilon e^{m}}, \qquad
    y = W_{out} (\sigma(W_o u) \odot \operatorname{LayerNorm}(h)),$$

    where the norm is taken per head. Everything is computed relative to $e^{m}$, a running maximum of the gates
    (`ssmkit.Stabiliser`). The $\epsilon$ of the authors' kernels is added at this scale.
    """

    q: ssmkit.Linear
    k: ssmkit.Linear
    v: ssmkit.Linear
    ogate_preact: ssmkit.Linear
    igate_preact: ssmkit.Linear
    fgate_preact: ssmkit.Linear
    stabiliser: ssmkit.Stabiliser
    recurrence: MLSTMRecurrence
    multihead_norm: ssmkit.LayerNorm
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    gate_soft_cap: float = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        num_heads: int = 8,
        expand_k: float = 0.5,
        expand_v: float = 1.0,
        gate_soft_cap: float = 15.0,
        norm_eps: float = 1e-6,
        eps: float = 1e-6,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        r"""Initialise as the authors' code.

        At first the gates ignore the input, and the forget gates lie between $\sigma(3)$ and $\sigma(6)$. A model of
        $L$ layers scales `out_proj` by $\sqrt{10} / L$.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `num_heads`: the number of heads, a divisor of the widths of keys and values.
        - `expand_k`, `expand_v`: the widths of keys and values, as multiples of `width`: the authors' `qk_dim_factor`
            and `v_dim_factor`.
        - `gate_soft_cap`: $c$.
        - `norm_eps`: the epsilon of the norm of each head.
        - `eps`: $\epsilon$.
        - `dtype`: the dtype of the projections; the norm stays float32.
        - `key`: the key for the initialisation.
        """
        if not gate_soft_cap > 0.0:
            raise ValueError(f"`gate_soft_cap` must be above 0, got {gate_soft_cap}.")
        sizes = {"expand_k": int(width * expand_k), "expand_v": int(width * expand_v)}
        for name, size in sizes.items():
            if size < 1 or size % num_heads != 0:
                raise ValueError(
                    f"`width` * `{name}` must be a positive multiple of the {num_heads} heads of `num_heads`, got "
                    f"{size}."
                )
        qk, v = sizes.values()
        keys = jax.random.split(key, 7)
        self.q = projection(width, qk, _SMALL, dtype=dtype, key=keys[0])
        self.k = projection(width, qk, _SMALL, dtype=dtype, key=keys[1])
        self.v = projection(width, v, _SMALL, dtype=dtype, key=keys[2])
        self.ogate_preact = projection(width, v, _SMALL, dtype=dtype, key=keys[3])
        self.igate_preact = _constant(width, jnp.full((num_heads,), -10.0, dtype), keys[4])
        self.fgate_preact = _constant(width, jnp.linspace(3.0, 6.0, num_heads, dtype=dtype), keys[5])
        self.stabiliser = ssmkit.Stabiliser(num_heads)
        self.recurrence = MLSTMRecurrence(state_shape=(num_heads, qk // num_heads, v // num_heads + 1))
        self.multihead_norm = ssmkit.LayerNorm(v, groups=num_heads, use_bias=False, eps=norm_eps)
        self.out_proj = projection(v, width, _SMALL, dtype=dtype, key=keys[6])
        self.gate_soft_cap = gate_soft_cap
        self.eps = eps

    def init_cache(self) -> MLSTMCache:
        """A zero state at scale 1, float32."""
        return MLSTMCache(log_scale=self.stabiliser.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: MLSTMCache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], MLSTMCache]:
        """The equations of the class, for many tokens or for one."""
        i, f = (
            self.gate_soft_cap * jnp.tanh(gate(x) / self.gate_soft_cap)
            for gate in (self.igate_preact, self.fgate_preact)
        )
        gates, log_scale = advance(
            self.stabiliser, ssmkit.Gates(forget=jax.nn.log_sigmoid(f), input=i), cache.log_scale
        )
        q, k, v = (
            jnp.reshape(project(x), (*x.shape[:-1], self.stabiliser.heads, -1)) for project in (self.q, self.k, self.v)
        )
        inputs = MLSTMInputs(q=q, k=k, v=v, log_decay=gates.log_decay, log_write=gates.log_write)
        y, state = advance(self.recurrence, inputs, cache.state)
        floor = jnp.exp(-gates.log_scale)[..., None]
        h = y[..., :-1] / (jnp.maximum(jnp.abs(y[..., -1:]), floor) + self.eps)
        h = self.multihead_norm(jnp.reshape(h, (*x.shape[:-1], -1)))
        return self.out_proj(jax.nn.sigmoid(self.ogate_preact(x)) * h), MLSTMCache(log_scale=log_scale, state=state)


def _constant(inputs: int, bias: Float[Array, " out"], key: PRNGKeyArray) -> ssmkit.Linear:
    """A gate that equals its bias at first."""
    linear = ssmkit.Linear(inputs, bias.size, use_bias=True, dtype=bias.dtype, key=key)
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), linear, (jnp.zeros(linear.weight.shape, bias.dtype), bias)
    )
