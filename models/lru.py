"""The LRU (arXiv 2303.06349)."""

import math
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._complex import between, in_turn
from ._projections import with_weight


class LRURecurrence(ssmkit.DiagonalChunkedRecurrence[Complex[Array, "*time heads"]]):
    r"""$x_t = \lambda \odot x_{t-1} + e^{\gamma} \odot w_t$, with $\lambda = e^{-e^{\nu} + i e^{\theta}}$ (section 3).

    Every mode is a head with a complex state of one number; $w = B u$.
    """

    nu_log: Float[Array, " heads"]
    theta_log: Float[Array, " heads"]
    gamma_log: Float[Array, " heads"]
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def __init__(self, state_size: int, *, r_min: float, r_max: float, max_phase: float, key: PRNGKeyArray):
        r"""Initialise $\lambda$ uniformly on a ring, and $e^{\gamma} = \sqrt{1 - |\lambda|^2}$ (lemma 3.2, appendix A).

        **Arguments:**

        - `state_size`: the number of modes.
        - `r_min`, `r_max`: the radii of the ring.
        - `max_phase`: the largest phase, in radians.
        - `key`: the key for the initialisation.
        """
        radius_key, phase_key = jax.random.split(key)
        squared = jax.random.uniform(radius_key, (state_size,), jnp.float32, r_min**2, r_max**2)
        squared = jnp.clip(squared, 1e-6, 1.0 - 1e-6)
        phase = jax.random.uniform(phase_key, (state_size,), jnp.float32, 1e-6, max_phase)
        self.nu_log = jnp.log(-0.5 * jnp.log(squared))
        self.theta_log = jnp.log(phase)
        self.gamma_log = 0.5 * jnp.log1p(-squared)
        self.state_shape = (state_size, 1, 1)
        self.state_dtype = jnp.complex64

    def coefficients(self, inputs: Complex[Array, " heads"]) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equation of the class.

        **Arguments:**

        - `inputs`: $w$ of one token, shape `(heads,)`.
        """
        gamma, one = jnp.exp(self.gamma_log), jnp.ones((1, 1), inputs.dtype)
        return ssmkit.Coefficients(
            log_decay=jax.lax.complex(-jnp.exp(self.nu_log), jnp.exp(self.theta_log))[:, None],
            write=one,
            value=(gamma.astype(inputs.dtype) * inputs)[:, None],
            read=one,
        )


class LRUMixer(ssmkit.AbstractRecurrentMixer[Complex[Array, "heads 1 1"]]):
    r"""The LRU, followed by a gated linear unit (figure 1 and appendix A).

    $$y = \operatorname{Re}(C x) + D \odot u, \qquad g = \operatorname{gelu}(y), \qquad
    (W_1 g + b_1) \odot \sigma(W_2 g + b_2)$$

    The complex maps are stored as real matrices. Rows of `B` are the real and the imaginary part of every row of $B$ in
    turn; columns of `C` are those of $C$.
    """

    B: ssmkit.Linear
    recurrence: LRURecurrence
    C: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    D: Float[Array, " width"]
    out: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    gate: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 256,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2.0 * math.pi,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise `B` and `C` with a Glorot normal and `D` with a standard normal distribution, as in appendix A.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`: the number of complex modes.
        - `r_min`, `r_max`: the least and the largest modulus of the initial eigenvalues.
        - `max_phase`: the largest phase of the initial eigenvalues, in radians.
        - `dtype`: the dtype of `B`, `C` and the gated linear unit; the rest stays float32.
        - `key`: the key for the initialisation.
        """
        if not 0.0 <= r_min < r_max <= 1.0:
            raise ValueError(f"`r_min` and `r_max` must be 0 <= r_min < r_max <= 1, got {r_min} and {r_max}.")
        if not max_phase > 0.0:
            raise ValueError(f"`max_phase` must be above 0, got {max_phase}.")
        B_key, C_key, D_key, ring_key, out_key, gate_key = jax.random.split(key, 6)
        B = jax.random.normal(B_key, (2 * state_size, width), jnp.float32) / math.sqrt(2 * width)
        C = jax.random.normal(C_key, (width, 2 * state_size), jnp.float32) / math.sqrt(state_size)
        B, C = in_turn(*jnp.split(B, 2, axis=0), axis=0), in_turn(*jnp.split(C, 2, axis=1), axis=1)
        self.B = with_weight(ssmkit.Linear(width, 2 * state_size, dtype=dtype, key=B_key), B)
        self.C = with_weight(ssmkit.Linear(2 * state_size, width, dtype=dtype, key=C_key), C)
        self.recurrence = LRURecurrence(state_size, r_min=r_min, r_max=r_max, max_phase=max_phase, key=ring_key)
        self.D = jax.random.normal(D_key, (width,), jnp.float32)
        self.out = ssmkit.Linear(width, width, use_bias=True, dtype=dtype, key=out_key)
        self.gate = ssmkit.Linear(width, width, use_bias=True, dtype=dtype, key=gate_key)

    def init_cache(self) -> Complex[Array, "heads 1 1"]:
        """The cache is the state of the recurrence."""
        return self.recurrence.init_state()

    def mix(
        self, x: Float[Array, "*time width"], cache: Complex[Array, "heads 1 1"], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Complex[Array, "heads 1 1"]]:
        """The equations of the class, for many tokens or for one."""
        y, cache = between(self.B, self.recurrence, self.C, x, cache, advance)
        y = jax.nn.gelu(y + jnp.broadcast_to(self.D, x.shape) * x.astype(y.dtype))
        return self.out(y) * jax.nn.sigmoid(self.gate(y)), cache
