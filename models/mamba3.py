"""Mamba-3 (arXiv 2603.15569), with one input and output per head or with several."""

import math
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._time_steps import initial_dt_bias


class Mamba3Inputs(eqx.Module):
    """The inputs of the recurrence for one token; many tokens have a leading `time` axis.

    They are the current and the previous write, the read, and the gates before their activations. B and C are rotated.
    """

    x: Float[Array, "*time heads rank value"]
    x_before: Float[Array, "*time heads rank value"]
    B: Float[Array, "*time heads rank key"]
    B_before: Float[Array, "*time heads rank key"]
    C: Float[Array, "*time heads rank key"]
    dt: Float[Array, "*time heads"]
    A: Float[Array, "*time heads"]
    trap: Float[Array, "*time heads"]


class Mamba3Recurrence(ssmkit.DiagonalChunkedRecurrence[Mamba3Inputs]):
    r"""The exponential-trapezoidal rule (section 3.1) for `rank` inputs and outputs (section 3.3).

    $$S_t = \alpha_t S_{t-1} + \sum_r (\beta_t B_{t-1,r} x_{t-1,r}^\top + \gamma_t B_{t,r} x_{t,r}^\top), \qquad
    y_{t,r} = S_t^\top C_{t,r}$$

    $$\alpha = e^{-\Delta A}, \quad \beta = (1 - \lambda) \Delta \alpha, \quad \gamma = \lambda \Delta, \quad
    \Delta = \operatorname{softplus}(dt + b), \quad \lambda = \sigma(\mathrm{trap})$$

    $A$ is an activation of its input, and at least `A_floor`. The activation is softplus or, in the authors' code since
    June 2026, a function with a heavier tail: $1 + a$ for $a \ge 0$ and $1 / (1 - a)$ for $a < 0$.
    """

    dt_bias: Float[Array, " heads"]
    A_activation: str = eqx.field(static=True)
    A_floor: float = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def step_size(self, dt: Float[Array, "*time heads"]) -> Float[Array, "*time heads"]:
        r"""The step size $\Delta$, which also sets the speed of the rotation."""
        return jax.nn.softplus(dt + jnp.broadcast_to(self.dt_bias, dt.shape))

    def coefficients(self, inputs: Mamba3Inputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class: twice `rank` writes, and `rank` reads.

        **Arguments:**

        - `inputs`: `x` and `x_before` of shape `(heads, rank, value)`, `B`, `B_before` and `C` of
            `(heads, rank, key)`, the others of `(heads,)`.
        """
        if self.A_activation == "softplus":
            A = jax.nn.softplus(inputs.A)
        else:
            A = jnp.maximum(inputs.A, 0.0) + 1.0 / (1.0 - jnp.minimum(inputs.A, 0.0))
        step, weight = self.step_size(inputs.dt), jax.nn.sigmoid(inputs.trap)
        log_decay = -jnp.maximum(A, self.A_floor) * step
        past, present = (1.0 - weight) * step * jnp.exp(log_decay), weight * step
        return ssmkit.Coefficients(
            log_decay=log_decay[:, None],
            write=jnp.concatenate([inputs.B_before, inputs.B], axis=1),
            value=jnp.concatenate([past[:, None, None] * inputs.x_before, present[:, None, None] * inputs.x], axis=1),
            read=inputs.C,
        )


class Mamba3Cache(eqx.Module):
    """The cache of a Mamba-3 mixer. Its size does not depend on the number of tokens."""

    phase: Float[Array, "*batch 2 heads angles"]
    B: Float[Array, "*batch heads rank key"]
    x: Float[Array, "*batch heads value"]
    state: Float[Array, "*batch heads key value"]


class Mamba3Mixer(ssmkit.AbstractRecurrentMixer[Mamba3Cache]):
    r"""The Mamba-3 mixer: projection, normalised and rotated B and C, recurrence, skip, gate, projection (figure 2).

    With $[z, x, B, C, dt, A, \mathrm{trap}, \theta] = W_{in} u$, B and C are normalised, biased per head and rotated by
    the angle $\sum_{s \le t} \pi \Delta_s \tanh \theta_s$ (section 3.2). Without `mimo_rank`, neighbouring features are
    pairs; with it, features half a `state_size` apart are pairs. Then

    $$y = W_{out} \sum_r o_r \odot (S^\top C_r + D x_r) \odot \operatorname{silu}(z \odot z_r), \qquad
    x_r = x \odot w_r,$$

    where $o_r$, $z_r$ and $w_r$ (`mimo_o`, `mimo_z`, `mimo_x`) are absent without `mimo_rank`. With `is_outproj_norm`,
    $S^\top C_r + D x_r$ is RMS-normalised within each head before it is gated.
    """

    in_proj: ssmkit.Linear | ssmkit.Apart
    B_norm: ssmkit.RMSNorm
    C_norm: ssmkit.RMSNorm
    B_bias: Float[Array, "heads rank key"]
    C_bias: Float[Array, "heads rank key"]
    mimo_x: Float[Array, "heads rank value"] | None
    mimo_z: Float[Array, "heads rank value"] | None
    mimo_o: Float[Array, "heads rank value"] | None
    D: Float[Array, " heads"]
    phase: ssmkit.RunningPhase
    B_before: ssmkit.Shift
    x_before: ssmkit.Shift
    recurrence: Mamba3Recurrence
    norm: ssmkit.RMSNorm | None
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    n_groups: int = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 128,
        expand: float = 2,
        head_dim: int = 64,
        num_heads: int | None = None,
        n_groups: int = 1,
        rope_fraction: float = 0.5,
        mimo_rank: int | None = None,
        A_activation: str = "heavy_tail",
        A_floor: float = 1e-4,
        is_outproj_norm: bool = False,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise as the authors' code.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`: key width of each head's state.
        - `expand`: channels, as a multiple of `width`, rounded down.
        - `head_dim`: value width of each head's state; divides the channels.
        - `num_heads`: the channels divided by `head_dim`, also when `None`; no other value is accepted.
        - `n_groups`: heads share B and C, up to their biases, within a group; divides the heads.
        - `rope_fraction`: the share of B's and C's features that is rotated, rounded down to pairs.
        - `mimo_rank`: inputs and outputs per head; `None` means one, without the vectors of MIMO.
        - `A_activation`: `"heavy_tail"` or `"softplus"`. Published configurations do not say which one a model has.
        - `A_floor`: the least decay rate.
        - `is_outproj_norm`: whether each head's output is normalised before the gate. All `mimo_rank` outputs share the
            weight of this norm.
        - `time_step_min`, `time_step_max`, `time_step_floor`: range of the initial step sizes.
        - `dtype`: the dtype of the projections; the rest stays float32.
        - `key`: the key for the initialisation.
        """
        channels, rank = int(expand * width), 1 if mimo_rank is None else mimo_rank
        if channels < 1 or channels % head_dim != 0:
            raise ValueError(f"`head_dim` must divide the {channels} channels, `expand` * `width`, got {head_dim}.")
        heads = channels // head_dim
        if num_heads not in (None, heads):
            raise ValueError(
                f"`num_heads` * `head_dim` must be the {channels} channels, `expand` * `width`, got {num_heads} * "
                f"{head_dim}."
            )
        if heads % n_groups != 0:
            raise ValueError(f"`n_groups` must divide the {heads} heads, got {n_groups}.")
        if state_size < 2 or state_size % 2 != 0:
            raise ValueError(f"`state_size` must be even and at least 2, for pairs to rotate, got {state_size}.")
        angles = int(state_size * rope_fraction) // 2
        if not 1 <= angles <= state_size // 2:
            raise ValueError(
                f"`rope_fraction` must rotate 2 to {state_size} features, got {rope_fraction}: {2 * angles}."
            )
        if A_activation not in ("heavy_tail", "softplus"):
            raise ValueError(f"`A_activation` must be 'heavy_tail' or 'softplus', got {A_activation!r}.")
        in_key, dt_key, out_key = jax.random.split(key, 3)
        by_group = ssmkit.Part(rank * n_groups * state_size, 1)  # the axis of ranks is outside the groups
        by_head = 3 * [ssmkit.Part(heads, heads)]
        parts = [*2 * [ssmkit.Part(channels, heads)], by_group, by_group, *by_head, ssmkit.Part(angles, 1)]
        rows = sum(part.size for part in parts)
        ones = lambda *shape: jnp.ones(shape, jnp.float32)
        self.in_proj = ssmkit.Linear(width, rows, parts=parts, dtype=dtype, key=in_key)
        self.B_norm, self.C_norm = ssmkit.RMSNorm(state_size), ssmkit.RMSNorm(state_size)
        self.B_bias, self.C_bias = ones(heads, rank, state_size), ones(heads, rank, state_size)
        mimo = None if mimo_rank is None else ones(heads, rank, head_dim)
        self.mimo_x = self.mimo_o = None if mimo is None else mimo / rank
        self.mimo_z = mimo
        self.D = ones(heads)
        self.phase = ssmkit.RunningPhase((heads, angles))
        self.B_before, self.x_before = ssmkit.Shift((heads, rank, state_size)), ssmkit.Shift((heads, head_dim))
        self.recurrence = Mamba3Recurrence(
            dt_bias=initial_dt_bias(heads, time_step_min, time_step_max, time_step_floor, key=dt_key),
            A_activation=A_activation,
            A_floor=A_floor,
            state_shape=(heads, state_size, head_dim),
        )
        self.norm = ssmkit.RMSNorm(channels, groups=heads) if is_outproj_norm else None
        self.out_proj = ssmkit.Linear(channels, width, dtype=dtype, key=out_key)
        self.n_groups = n_groups

    def init_cache(self) -> Mamba3Cache:
        """A zero angle, a zero previous write and a zero state, in float32."""
        operators = (self.phase, self.B_before, self.x_before, self.recurrence)
        return Mamba3Cache(*(operator.init_state() for operator in operators))

    def mix(
        self, x: Float[Array, "*time width"], cache: Mamba3Cache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Mamba3Cache]:
        """The equations of the class, for many tokens or for one."""
        heads = self.B_bias.shape[0]
        value, axes = self.recurrence.state_shape[2], x.shape[:-1]
        z, u, B, C, dt, A, trap, angles = self.in_proj.split(x)
        z, u = (jnp.reshape(array, (*axes, heads, value)) for array in (z, u))

        turns = 0.5 * self.recurrence.step_size(dt)[..., None] * jnp.tanh(angles)[..., None, :]
        angle, phase = advance(self.phase, turns, cache.phase)
        B = self._turned(self.B_norm, self.B_bias, B, angle)
        C = self._turned(self.C_norm, self.C_bias, C, angle)
        B_before, B_last = advance(self.B_before, B, cache.B)
        u_before, u_last = advance(self.x_before, u, cache.x)
        u, u_before, z = _ranks(u, self.mimo_x), _ranks(u_before, self.mimo_x), _ranks(z, self.mimo_z)
        inputs = Mamba3Inputs(x=u, x_before=u_before, B=B, B_before=B_before, C=C, dt=dt, A=A, trap=trap)
        y, state = advance(self.recurrence, inputs, cache.state)
        y = self._normed(y + jnp.broadcast_to(self.D[:, None, None], u.shape) * u) * ssmkit.silu(z)
        y = jnp.sum(y if self.mimo_o is None else y * jnp.broadcast_to(self.mimo_o, y.shape), axis=-2)
        return self.out_proj(jnp.reshape(y, (*axes, -1))), Mamba3Cache(phase=phase, B=B_last, x=u_last, state=state)

    def _normed(self, y: Float[Array, "*time heads rank value"]) -> Float[Array, "*time heads rank value"]:
        """Every output of every head, normalised if the mixer has a norm, whose weight concatenates all heads."""
        if self.norm is None:
            return y
        rows = jnp.swapaxes(y, -3, -2)
        return jnp.swapaxes(jnp.reshape(self.norm(jnp.reshape(rows, (*rows.shape[:-2], -1))), rows.shape), -3, -2)

    def _turned(
        self,
        norm: ssmkit.RMSNorm,
        bias: Float[Array, "heads rank key"],
        projected: Float[Array, "*time features"],
        turns: Float[Array, "*time heads angles"],
    ) -> Float[Array, "*time heads rank key"]:
        """B or C of every head: normalised, biased and then rotated."""
        heads, rank, key = bias.shape
        shared = norm(jnp.reshape(projected, (*projected.shape[:-1], rank, self.n_groups, key)))
        x = jnp.repeat(jnp.swapaxes(shared, -3, -2), heads // self.n_groups, axis=-3)
        x = x + jnp.broadcast_to(bias, x.shape)
        # The two features of a pair: (..., pairs, 2) for neighbours, (..., 2, pairs) for halves.
        shape, axis = ((key // 2, 2), -1) if self.mimo_x is None else ((2, key // 2), -2)
        first, second = jnp.moveaxis(jnp.reshape(x, (*x.shape[:-1], *shape)), axis, 0)
        still = [(0, 0)] * (turns.ndim - 1) + [(0, key // 2 - turns.shape[-1])]
        radians = 2.0 * math.pi * jnp.pad(turns, still)[..., None, :]
        cos, sin = jnp.cos(radians), jnp.sin(radians)
        return jnp.reshape(jnp.stack([first * cos - second * sin, first * sin + second * cos], axis=axis), x.shape)


def _ranks(x: Float[Array, "*time heads value"], scale: Array | None) -> Float[Array, "*time heads rank value"]:
    """One copy of `x` per input, scaled; a single one without a scale."""
    x = x[..., None, :]
    return x if scale is None else x * jnp.broadcast_to(scale, (*x.shape[:-3], *scale.shape))
