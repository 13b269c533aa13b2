"""S5 (arXiv 2208.04933): a diagonal complex system between a dense input and a dense output map."""

from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._complex import between, in_turn
from ._projections import with_weight
from ._time_steps import initial_log_steps


class S5Recurrence(ssmkit.DiagonalChunkedRecurrence[Complex[Array, "*time heads"]]):
    r"""$x_t = \bar{\Lambda} x_{t-1} + \beta w_t$ (section 3.2), by zero-order hold or the bilinear transform:

    $$\bar{\Lambda} = e^{\Lambda \Delta}, \; \beta = \Lambda^{-1} (e^{\Lambda \Delta} - 1)
    \qquad \text{or} \qquad
    \bar{\Lambda} = \frac{1 + \Lambda \Delta / 2}{1 - \Lambda \Delta / 2}, \;
    \beta = \frac{\Delta}{1 - \Lambda \Delta / 2}$$

    Every mode is a head with a complex state of one number; $w = \tilde{B} u$. With the authors' option `clip_eigs` the
    real part of $\Lambda$ is kept at or below -1e-4. Without it, training may let a mode grow with time.
    """

    Lambda_re: Float[Array, " heads"]
    Lambda_im: Float[Array, " heads"]
    log_step: Float[Array, " heads"]
    discretization: str = eqx.field(static=True)
    clip_eigs: bool = eqx.field(static=True)
    step_rescale: float = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        eigenvalues: np.ndarray,
        *,
        time_step_min: float,
        time_step_max: float,
        discretization: str = "zoh",
        clip_eigs: bool = True,
        step_rescale: float = 1.0,
        key: PRNGKeyArray,
    ):
        r"""Initialise step sizes $\Delta$ log-uniformly in [`time_step_min`, `time_step_max`].

        **Arguments:**

        - `eigenvalues`: $\Lambda$, complex, shape `(heads,)`.
        - `time_step_min`, `time_step_max`: range of the step sizes.
        - `discretization`: `"zoh"` or `"bilinear"`.
        - `clip_eigs`: keep the real part of $\Lambda$ at or below -1e-4.
        - `step_rescale`: a factor of all step sizes, for sequences sampled at another rate than in training.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` for another discretisation, or a factor that is not positive.
        """
        if discretization not in ("zoh", "bilinear"):
            raise ValueError(f"`discretization` must be 'zoh' or 'bilinear', got {discretization!r}.")
        if not step_rescale > 0.0:
            raise ValueError(f"`step_rescale` must be above 0, got {step_rescale}.")
        self.Lambda_re = jnp.asarray(np.real(eigenvalues), jnp.float32)
        self.Lambda_im = jnp.asarray(np.imag(eigenvalues), jnp.float32)
        shape = eigenvalues.shape
        self.log_step = initial_log_steps(eigenvalues.size, time_step_min, time_step_max, key=key)
        self.discretization, self.clip_eigs, self.step_rescale = discretization, clip_eigs, step_rescale
        self.state_shape = (*shape, 1, 1)
        self.state_dtype = jnp.complex64

    def coefficients(self, inputs: Complex[Array, " heads"]) -> ssmkit.Coefficients:
        r"""The coefficients of one token, by the equations of the class.

        **Arguments:**

        - `inputs`: $w$ of one token, shape `(heads,)`.
        """
        step = self.step_rescale * jnp.exp(self.log_step)
        a = step * (jnp.minimum(self.Lambda_re, -1e-4) if self.clip_eigs else self.Lambda_re)
        b = step * self.Lambda_im
        log_decay, share = _zero_order_hold(a, b) if self.discretization == "zoh" else _bilinear(a, b)
        value = step.astype(inputs.dtype) * share * inputs
        one = jnp.ones((1, 1), inputs.dtype)
        return ssmkit.Coefficients(log_decay=log_decay[:, None], write=one, value=value[:, None], read=one)


class S5Mixer(ssmkit.AbstractRecurrentMixer[Complex[Array, "heads 1 1"]]):
    r"""The S5 layer (section 3 and appendix B), with the activation that its authors' code calls `half_glu1`.

    $$y = 2 \operatorname{Re}(\tilde{C} x) + D \odot u, \qquad
    g = \operatorname{gelu}(y), \qquad g \odot \sigma(W g + b)$$

    The factor is 2 because only one eigenvalue of each conjugate pair is stored. With `conj_sym=False` both are stored,
    and there is no factor. The complex maps are stored as real matrices. Rows of `B` are the real parts, followed by
    the imaginary parts, of $\tilde{B}$; columns of `C` are those of $\tilde{C}$.
    """

    B: ssmkit.Linear
    recurrence: S5Recurrence
    C: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    D: Float[Array, " width"]
    gate: Annotated[ssmkit.Linear, ssmkit.ArrayKind.SHARED]
    conj_sym: bool = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 256,
        blocks: int = 8,
        conj_sym: bool = True,
        discretization: str = "zoh",
        clip_eigs: bool = True,
        step_rescale: float = 1.0,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise with `blocks` copies of the normal part of HiPPO-LegS, as the authors' code.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`: the number of modes, counting both of a conjugate pair: a multiple of `blocks`
            (`ssm_size_base`).
        - `blocks`: the number of copies of the HiPPO matrix on the diagonal.
        - `conj_sym`: whether only one mode of every conjugate pair is stored, which halves the state.
        - `discretization`, `clip_eigs`, `step_rescale`: as `S5Recurrence`. The authors' code does not clip by default.
        - `time_step_min`, `time_step_max`: range of the initial step sizes.
        - `dtype`: the dtype of `B`, `C` and the gate; the rest stays float32.
        - `key`: the key for the initialisation.
        """
        pair = 2 if conj_sym else 1
        if state_size % (pair * blocks) != 0:
            raise ValueError(
                f"`state_size` must be a positive multiple of {'2 * ' * conj_sym}`blocks` = {pair * blocks}, got "
                f"{state_size}."
            )
        eigenvalues, vectors = _hippo(state_size // blocks, pair)
        eigenvalues, vectors = np.tile(eigenvalues, blocks), np.kron(np.eye(blocks), vectors)
        normal = jax.nn.initializers.lecun_normal()
        B_key, C_key, D_key, step_key, gate_key, linear_key = jax.random.split(key, 6)
        basis = jnp.asarray(vectors, jnp.complex64)
        B = normal(B_key, (state_size, width), jnp.float32).astype(basis.dtype)
        C = jax.lax.complex(*jnp.split(normal(C_key, (state_size, 2 * width), jnp.float32), 2, axis=1))
        B, C = ssmkit.product("sm,sw->mw", basis.conj(), B), ssmkit.product("sw,sm->wm", C, basis)
        modes = eigenvalues.size
        linear = ssmkit.Linear(width, 2 * modes, dtype=dtype, key=linear_key)
        self.B = with_weight(linear, in_turn(B.real, B.imag, axis=0))
        linear = ssmkit.Linear(2 * modes, width, dtype=dtype, key=linear_key)
        self.C = with_weight(linear, in_turn(C.real, C.imag, axis=1))
        self.recurrence = S5Recurrence(
            eigenvalues,
            time_step_min=time_step_min,
            time_step_max=time_step_max,
            discretization=discretization,
            clip_eigs=clip_eigs,
            step_rescale=step_rescale,
            key=step_key,
        )
        self.D = jax.random.normal(D_key, (width,), jnp.float32)
        self.gate = ssmkit.Linear(width, width, use_bias=True, dtype=dtype, key=gate_key)
        self.conj_sym = conj_sym

    def init_cache(self) -> Complex[Array, "heads 1 1"]:
        """The cache is the state of the recurrence."""
        return self.recurrence.init_state()

    def mix(
        self, x: Float[Array, "*time width"], cache: Complex[Array, "heads 1 1"], advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Complex[Array, "heads 1 1"]]:
        """The equations of the class, for many tokens or for one."""
        y, cache = between(self.B, self.recurrence, self.C, x, cache, advance)
        y = jax.nn.gelu((2.0 if self.conj_sym else 1.0) * y + jnp.broadcast_to(self.D, x.shape) * x.astype(y.dtype))
        return y * jax.nn.sigmoid(self.gate(y)), cache


def _hippo(size: int, pair: int) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues and eigenvectors of the normal part of HiPPO-LegS: one of every `pair`."""
    n = np.arange(size)
    p = np.sqrt(2 * n + 1)
    normal = np.diag(n) - np.tril(np.outer(p, p)) + np.outer(p, p) / 2
    imaginary, vectors = np.linalg.eigh(-1j * normal)
    kept = size // pair
    return -0.5 + 1j * imaginary[:kept], vectors[:, :kept]


Parts = tuple[Complex[Array, " heads"], Complex[Array, " heads"]]


def _zero_order_hold(a: Float[Array, " heads"], b: Float[Array, " heads"]) -> Parts:
    r"""Compute $z = a + ib$ and $(e^z - 1) / z$, in a form that loses no digits for small $z$ and is 1 at 0."""
    grown = jax.lax.complex(jnp.expm1(a) * jnp.cos(b) - 2.0 * jnp.square(jnp.sin(0.5 * b)), jnp.exp(a) * jnp.sin(b))
    z = jax.lax.complex(a, b)
    tiny = jnp.abs(a) + jnp.abs(b) < 1e-4
    return z, jnp.where(tiny, 1.0 + z / 2.0 + z * z / 6.0, grown / jnp.where(tiny, jnp.ones_like(z), z))


def _bilinear(a: Float[Array, " heads"], b: Float[Array, " heads"]) -> Parts:
    r"""Compute $\log((1 + z/2) / (1 - z/2))$ and $1 / (1 - z/2)$ for $z = a + ib$.

    Small $z$ lose no digits. The modulus is at least 1e-18, so that derivatives are finite at $z = -2$, where it would
    be 0.
    """
    a, b = 0.5 * a, 0.5 * b
    above, below = jnp.square(1.0 + a) + jnp.square(b), jnp.square(1.0 - a) + jnp.square(b)
    change = 4.0 * a / below  # of the squared modulus, from 1
    near_one = jnp.abs(change) < 0.5
    ratio = jnp.maximum(above / below, 1e-36)
    log_modulus = 0.5 * jnp.where(
        near_one, jnp.log1p(jnp.where(near_one, change, jnp.zeros_like(change))), jnp.log(ratio)
    )
    phase = jnp.arctan2(b, jnp.where(above > 0.0, 1.0 + a, jnp.ones_like(a))) + jnp.arctan2(b, 1.0 - a)
    return jax.lax.complex(log_modulus, phase), jax.lax.complex((1.0 - a) / below, b / below)
