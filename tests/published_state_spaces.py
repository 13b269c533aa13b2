"""Token-by-token oracles of published state-space models and linear RNNs.

Each function states one paper's recurrence literally: one `jax.lax.scan` over tokens, one line per equation, no chunks
and no rewriting for speed. Nothing here comes from ssmkit, so an error there cannot hide here. The functions take a
single sequence (time is the leading axis, there is no batch axis) with the values that reach the gates still raw, and
return the outputs with the state after the last token. They keep the dtype they are given: under `jax_enable_x64`
with float64 arrays they run in float64, and `jax.grad` goes through all of them.

Matrix states are (heads, key, value) throughout.
"""

import jax
import jax.numpy as jnp
from published_attention import outer, read


def selective_scan(x, dt, B, C, A_log, dt_bias, state):
    """Mamba-1: "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752), eq. 2 and alg. 2.

    h_t = exp(dt A) h_{t-1} + dt B_t x_t and y_t = C_t h_t, every channel with a diagonal state of its own: the exact
    discretisation for A, Euler's for B. The step size passes a softplus after its bias and A = -exp(A_log). The skip
    through D and the gate belong to the layer.

    Re-expresses github.com/state-spaces/mamba: `mamba_ssm/modules/mamba_simple.py` (`Mamba.step`) and
    `mamba_ssm/ops/selective_scan_interface.py` (`selective_scan_ref`).

    Shapes: x, dt (time, d); B, C (time, n); A_log (d, n); dt_bias (d,); state (d, n).
    """
    A = -jnp.exp(A_log)

    def step(h, token):
        x_t, dt_t, B_t, C_t = token
        delta = jax.nn.softplus(dt_t + dt_bias)[:, None]
        h = jnp.exp(delta * A) * h + delta * B_t * x_t[:, None]
        return h, h @ C_t

    state, y = jax.lax.scan(step, state, (x, dt, B, C))
    return y, state


def mamba3_siso(x, dt, A, trap, angles, B, C, D, dt_bias, state, z=None, A_activation="heavy_tail", norm=None):
    """Mamba-3: "Mamba-3: Improved Sequence Modeling using State Space Principles" (arXiv 2603.15569, ICLR 2026).

    The exponential-trapezoidal recurrence with data-dependent rotation, one input and one output per head (SISO):
    S_t = alpha S_{t-1} + beta k_{t-1} v_{t-1}^T + gamma k_t v_t^T and y_t = S_t^T q_t + D v_t, with v = x,
    alpha = exp(A dt), beta = (1 - lambda) dt alpha, gamma = lambda dt, lambda = sigmoid(trap), dt = softplus(dt + bias)
    and A = -max(activation(A), 1e-4). Keys and queries are B and C turned by the angle summed up so far, which grows by
    pi tanh(angles) dt each token and is kept within [0, 2 pi); here the pairs are neighbours (2j, 2j + 1), and features
    past the last angle stay put. k_{t-1} was turned by its own token's angle. With `norm`, the weight (heads, p) of the
    layer's option `is_outproj_norm`, y is RMS-normalised over p (epsilon 1e-5); with `z`, it is then multiplied by
    silu(z).

    `A_activation`: "heavy_tail" (1 + a for a >= 0, 1 / (1 - a) below) is the authors' code since commit c69aaab of
    2026-06-02, "softplus" is what it was before and what fla has; no configuration key tells them apart.

    Re-expresses github.com/state-spaces/mamba: `tests/ops/triton/test_mamba3_siso.py` (`mamba3_siso_step_ref`) and, for
    what precedes it, `mamba_ssm/modules/mamba3.py`. There the state is (heads, p, n), transposed to this one.

    Shapes: x, z (time, heads, p); dt, A, trap (time, heads); angles (time, a), shared by the heads, a <= n/2; B, C
    (time, heads, n) after norm and bias; D, dt_bias (heads,); state (S (heads, n, p), k (heads, n), v (heads, p),
    angle (heads, a)).
    """

    def step(carry, token):
        S, k_before, v_before, angle = carry
        x_t, dt_t, A_t, trap_t, angles_t, B_t, C_t = token
        alpha, beta, gamma, delta = _trapezoid(dt_t + dt_bias, A_t, trap_t, A_activation)
        angle = _wrap(angle + jnp.pi * jnp.tanh(angles_t) * delta[:, None])
        k_t, q_t = _turn_neighbours(B_t, angle), _turn_neighbours(C_t, angle)
        S = (
            alpha[:, None, None] * S
            + beta[:, None, None] * outer(k_before, v_before)
            + gamma[:, None, None] * outer(k_t, x_t)
        )
        return (S, k_t, x_t, angle), read(S, q_t) + D[:, None] * x_t

    state, y = jax.lax.scan(step, state, (x, dt, A, trap, angles, B, C))
    y = y if norm is None else _rms_norm(y, norm[None])
    return (y if z is None else y * jax.nn.silu(z)), state


def mamba3_mimo(
    x,
    dt,
    A,
    trap,
    angles,
    B,
    C,
    D,
    dt_bias,
    mimo_x,
    mimo_o,
    state,
    z=None,
    mimo_z=None,
    A_activation="heavy_tail",
    norm=None,
):
    """Mamba-3 with several inputs and outputs per head (arXiv 2603.15569, ICLR 2026: the MIMO variant).

    As `mamba3_siso`, but head h has R keys, queries and values: v_r = x * mimo_x[h, r], the state takes the sum over r
    of k_r v_r^T (at both ends of the trapezoid), y_r = S^T q_r + D v_r, then y_r * silu(z * mimo_z[h, r]), and the
    output is the sum over r of mimo_o[h, r] * y_r. Here the pairs that turn are (j, j + n/2), unlike SISO's. With
    `mimo_o` None the y_r are returned apart, (time, heads, R, p). With `norm`, each y_r is normalised before its gate.

    Re-expresses github.com/state-spaces/mamba, `mamba_ssm/modules/mamba3.py` (`Mamba3.step`, which rotates by
    `mamba_ssm/ops/triton/mamba3/mamba3_mimo_rotary_step.py` with rotate_pairwise=False) and the recurrence of
    `tests/ops/tilelang/test_mamba3_mimo.py` (`mamba3_MIMO_step_ref`). That test's reference turns neighbours, as SISO
    does, which is neither what the layer nor what its kernels do. The layer's step lets the angle grow where this and
    the full-sequence kernels wrap it, and keeps v before mimo_x, as here.

    Shapes: x, z (time, heads, p); dt, A, trap (time, heads); angles (time, a), a <= n/2; B, C (time, heads, R, n) after
    norm and bias; D, dt_bias (heads,); mimo_x, mimo_z, mimo_o (heads, R, p); state (S (heads, n, p), k (heads, R, n),
    v (heads, p), angle (heads, a)).
    """

    def step(carry, token):
        S, k_before, x_before, angle = carry
        x_t, dt_t, A_t, trap_t, angles_t, B_t, C_t = token
        alpha, beta, gamma, delta = _trapezoid(dt_t + dt_bias, A_t, trap_t, A_activation)
        angle = _wrap(angle + jnp.pi * jnp.tanh(angles_t) * delta[:, None])
        k_t, q_t = _turn_halves(B_t, angle[:, None, :]), _turn_halves(C_t, angle[:, None, :])
        v_t, v_before = x_t[:, None, :] * mimo_x, x_before[:, None, :] * mimo_x
        S = (
            alpha[:, None, None] * S
            + beta[:, None, None] * jnp.einsum("hrn,hrp->hnp", k_before, v_before)
            + gamma[:, None, None] * jnp.einsum("hrn,hrp->hnp", k_t, v_t)
        )
        y_t = jnp.einsum("hnp,hrn->hrp", S, q_t) + D[:, None, None] * v_t
        return (S, k_t, x_t, angle), y_t

    state, y = jax.lax.scan(step, state, (x, dt, A, trap, angles, B, C))
    if norm is not None:
        y = _rms_norm(y, norm[None, :, None, :])
    if z is not None:
        y = y * jax.nn.silu(z[:, :, None, :] * mimo_z)
    return (y if mimo_o is None else jnp.sum(mimo_o * y, axis=2)), state


def s5(u, Lambda, B, C, D, log_step, state, conj_sym=True, discretization="zoh"):
    """S5: "Simplified State Space Layers for Sequence Modeling" (arXiv 2208.04933).

    x_t = exp(Lambda dt) x_{t-1} + (exp(Lambda dt) - 1) / Lambda B u_t and y_t = Re(C x_t) + D u_t, with
    dt = exp(log_step) per state. With `conj_sym` (the authors' default) only one eigenvalue of each conjugate pair is
    held, and y_t = 2 Re(C x_t) + D u_t. That is zero-order hold; "bilinear" has the decay
    (1 + Lambda dt / 2) / (1 - Lambda dt / 2), and dt / (1 - Lambda dt / 2) B.

    Re-expresses github.com/lindermanlab/S5, `s5/ssm.py` (`discretize_zoh`, `discretize_bilinear`, `apply_ssm`;
    step_rescale 1, no clipping).

    Shapes: u (time, h); Lambda (p,), B (p, h) and C (h, p) complex; D (h,); log_step (p,) real; state (p,) complex.
    """
    dt = jnp.exp(log_step)
    if discretization == "zoh":
        decay = jnp.exp(Lambda * dt)
        B_bar = ((decay - 1) / Lambda)[:, None] * B
    elif discretization == "bilinear":
        decay = (1 + dt / 2 * Lambda) / (1 - dt / 2 * Lambda)
        B_bar = (dt / (1 - dt / 2 * Lambda))[:, None] * B
    else:
        raise ValueError(f"discretization is 'zoh' or 'bilinear', not {discretization!r}")

    def step(x, u_t):
        x = decay * x + B_bar @ u_t.astype(B_bar.dtype)
        return x, (2 if conj_sym else 1) * jnp.real(C @ x) + D * u_t

    state, y = jax.lax.scan(step, state, u)
    return y, state


def lru(u, nu_log, theta_log, B, C, D, gamma_log, state):
    """LRU: "Resurrecting Recurrent Neural Networks for Long Sequences" (arXiv 2303.06349), appendix A.

    x_t = lambda x_{t-1} + exp(gamma_log) (B u_t) and y_t = Re(C x_t) + D u_t, where
    lambda = exp(-exp(nu_log) + i exp(theta_log)). gamma_log starts at log sqrt(1 - |lambda|^2) and is then learnt.

    Re-expresses the listing in the paper's appendix A, its authors' simplified code; the same formulas are in
    github.com/NicolasZucchet/minimal-LRU, `lru/model.py`.

    Shapes: u (time, h); nu_log, theta_log, gamma_log (n,); B (n, h) and C (h, n) complex; D (h,); state (n,) complex.
    """
    eigenvalues = jnp.exp(jax.lax.complex(-jnp.exp(nu_log), jnp.exp(theta_log)))

    def step(x, u_t):
        x = eigenvalues * x + jnp.exp(gamma_log) * (B @ u_t.astype(B.dtype))
        return x, jnp.real(C @ x) + D * u_t

    state, y = jax.lax.scan(step, state, u)
    return y, state


def rg_lru(x, input_gate, recurrence_gate, a_param, state, starts=None):
    """RG-LRU: "Griffin: Mixing Gated Linear Recurrences with Local Attention" (arXiv 2402.19427), eq. 1 to 4.

    r_t = sigmoid(recurrence_gate), i_t = sigmoid(input_gate), a_t = exp(-8 r_t softplus(a_param)) and
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) i_t x_t; the output is h itself. The block-diagonal maps that make the gates,
    the convolution before and the gated branch beside are the layer's.

    `starts` (time,) marks the first token of every segment, and there the authors' code departs from eq. 4: a_t is 0
    and the factor sqrt(1 - a_t^2) is 1, so h_t = i_t x_t at full size and nothing of the state survives. In their code
    these are the tokens at position 0, so an ordinary prompt has one, its first; a call that goes on from a state has
    none. None means no token starts a segment: eq. 4 throughout, also from a zero state.

    Re-expresses github.com/google-deepmind/recurrentgemma, `recurrentgemma/jax/layers.py` (`RGLRU`). Its backward pass
    also clips the square root's derivative at 1000, which matters only where 1 - a_t^2 < 2.5e-7 and is left out.

    Shapes: x, input_gate, recurrence_gate (time, d), the gates before their sigmoids; a_param (d,); state (d,).
    """
    if starts is None:
        starts = jnp.zeros(x.shape[0], bool)

    def step(h, token):
        x_t, input_t, recurrence_t, start = token
        a = jnp.exp(-8 * jax.nn.sigmoid(recurrence_t) * jax.nn.softplus(a_param))
        multiplier = jnp.where(start, 1, jnp.sqrt(1 - a**2))
        h = jnp.where(start, 0, a) * h + multiplier * (jax.nn.sigmoid(input_t) * x_t)
        return h, h

    state, h = jax.lax.scan(step, state, (x, input_gate, recurrence_gate, jnp.asarray(starts, bool)))
    return h, state


def _rms_norm(y, weight):
    return y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + 1e-5) * weight


def _trapezoid(raw_dt, raw_A, trap, A_activation):
    if A_activation == "heavy_tail":
        rate = jnp.maximum(raw_A, 0) + 1 / (1 - jnp.minimum(raw_A, 0))
    elif A_activation == "softplus":
        rate = jax.nn.softplus(raw_A)
    else:
        raise ValueError(f"A_activation is 'heavy_tail' or 'softplus', not {A_activation!r}")
    delta, weight = jax.nn.softplus(raw_dt), jax.nn.sigmoid(trap)
    alpha = jnp.exp(-jnp.maximum(rate, 1e-4) * delta)
    return alpha, (1 - weight) * delta * alpha, weight * delta, delta


def _wrap(angle):
    return angle - 2 * jnp.pi * jnp.floor(angle / (2 * jnp.pi))


def _turn(first, second, angle):
    still = [(0, 0)] * (angle.ndim - 1) + [(0, first.shape[-1] - angle.shape[-1])]
    angle = jnp.pad(angle, still)
    return first * jnp.cos(angle) - second * jnp.sin(angle), first * jnp.sin(angle) + second * jnp.cos(angle)


def _turn_neighbours(x, angle):
    return jnp.stack(_turn(x[..., 0::2], x[..., 1::2], angle), axis=-1).reshape(x.shape)


def _turn_halves(x, angle):
    half = x.shape[-1] // 2
    return jnp.concatenate(_turn(x[..., :half], x[..., half:], angle), axis=-1)
