"""Token-by-token oracles of published recurrences.

Each function states one paper's recurrence literally: one `jax.lax.scan` over tokens, one line per equation, no chunks
and no rewriting for speed. Nothing here comes from ssmkit, so an error there cannot hide here. The functions take a
single sequence (time is the leading axis, there is no batch axis) with the values that reach the gates still raw, and
return the outputs with the state after the last token. They keep the dtype they are given: under `jax_enable_x64`
with float64 arrays they run in float64, and `jax.grad` goes through all of them.

Matrix states are (heads, key, value) throughout.
"""

import jax
import jax.numpy as jnp


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


def rotate(x, positions, convention="fla"):
    """Rotate queries or keys by their position, as RetNet does (arXiv 2307.08621, sec. 2.1: the factor exp(i n theta)).

    Two codes, two conventions, and weights do not carry over between them:

    - "fla" (github.com/fla-org/flash-linear-attention, `fla/modules/rotary.py`): feature j turns with feature
      j + dk/2 ("half split", as in GPT-NeoX), theta_j = 10000^(-2j / dk).
    - "torchscale", the authors' own (github.com/microsoft/torchscale, `torchscale/architecture/retnet.py` and
      `torchscale/component/multiscale_retention.py`): neighbours (2j, 2j + 1) turn together, and theta_j runs from 1
      to 1/10000 with both ends included, 10000^(-j / (dk/2 - 1)).

    Neither applies xPos's growing and shrinking magnitudes: the decay of the retention takes their place.

    Shapes: x (time, heads, dk); positions (time,).
    """
    pairs = x.shape[-1] // 2
    if convention == "fla":
        exponent = jnp.arange(pairs, dtype=x.dtype) / pairs
        first, second = x[..., :pairs], x[..., pairs:]
    elif convention == "torchscale":
        exponent = jnp.linspace(0.0, 1.0, pairs, dtype=x.dtype)
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        raise ValueError(f"convention is 'fla' or 'torchscale', not {convention!r}")
    angle = (jnp.asarray(positions, x.dtype)[:, None] * (10000.0**-exponent)[None, :])[:, None, :]
    turned_first = first * jnp.cos(angle) - second * jnp.sin(angle)
    turned_second = first * jnp.sin(angle) + second * jnp.cos(angle)
    if convention == "fla":
        return jnp.concatenate([turned_first, turned_second], axis=-1)
    return jnp.stack([turned_first, turned_second], axis=-1).reshape(x.shape)


def retention(q, k, v, state):
    """RetNet: "Retentive Network: A Successor to Transformer for Large Language Models" (arXiv 2307.08621), eq. 6.

    S_t = gamma S_{t-1} + k_t v_t^T and o_t = S_t^T q_t dk^(-1/2), with gamma = 1 - 2^(-5-h) for head h = 0, 1, ...
    (eq. 8). Queries and keys arrive rotated (see `rotate`); the norm over each head and the gate are the layer's. The
    authors also divide the scores by detached sums, which that norm undoes up to its epsilon; that is left out here,
    as it is in fla.

    Re-expresses github.com/fla-org/flash-linear-attention, `fla/ops/retention/naive.py`; compare the recurrent form in
    github.com/microsoft/torchscale, `torchscale/component/multiscale_retention.py` (which scales k in place of q).

    Shapes: q, k (time, heads, dk); v (time, heads, dv); state (heads, dk, dv).
    """
    heads, dk = q.shape[1:]
    gamma = 1 - 2.0 ** (-5 - jnp.arange(heads, dtype=q.dtype))

    def step(S, token):
        q_t, k_t, v_t = token
        S = gamma[:, None, None] * S + _outer(k_t, v_t)
        return S, _read(S, q_t * dk**-0.5)

    state, o = jax.lax.scan(step, state, (q, k, v))
    return o, state


def gla(q, k, v, gate, state):
    """GLA: "Gated Linear Attention Transformers with Hardware-Efficient Training" (arXiv 2312.06635), sec. 4.1, 4.4.

    S_t = diag(alpha_t) S_{t-1} + k_t v_t^T and o_t = S_t^T q_t dk^(-1/2), where alpha_t = sigmoid(gate_t)^(1/16): the
    log decay is logsigmoid(gate) / 16. Head norm and output gate are the layer's.

    Re-expresses github.com/fla-org/flash-linear-attention: `fla/ops/gla/naive.py` and, for the gate,
    `fla/layers/gla.py` (`gate_logit_normalizer` at its default 16, no clamp).

    Shapes: q, k, gate (time, heads, dk); v (time, heads, dv); state (heads, dk, dv).
    """
    dk = q.shape[-1]

    def step(S, token):
        q_t, k_t, v_t, gate_t = token
        alpha = jnp.exp(jax.nn.log_sigmoid(gate_t) / 16)
        S = alpha[:, :, None] * S + _outer(k_t, v_t)
        return S, _read(S, q_t * dk**-0.5)

    state, o = jax.lax.scan(step, state, (q, k, v, gate))
    return o, state


def hgrn2(q, f, i, lower_bound, state, scaled=True):
    """HGRN2: "HGRN2: Gated Linear RNNs with State Expansion" (arXiv 2404.07904).

    g_t = lb + (1 - lb) sigmoid(f_t), S_t = diag(g_t) S_{t-1} + (1 - g_t) i_t^T and o_t = S_t^T silu(q_t): the forget
    gate's complement serves as the key and the input as the value. Output norm and projection are the layer's.

    Re-expresses github.com/fla-org/flash-linear-attention, `fla/layers/hgrn2.py` (github.com/OpenNLPLab/HGRN2, the
    paper's own, has only experiment scripts). That layer calls GLA's kernel with its default scale, so the query is
    multiplied by dk^(-1/2), which the paper does not have; `scaled=False` is the paper. `lower_bound` is the value
    after the softmax and the cumulative sum over layers (0 for the first layer).

    Shapes: q, f (time, heads, dk); i (time, heads, dv); lower_bound a scalar or (heads, dk); state (heads, dk, dv).
    """
    scale = q.shape[-1] ** -0.5 if scaled else 1.0

    def step(S, token):
        q_t, f_t, i_t = token
        g = lower_bound + (1 - lower_bound) * jax.nn.sigmoid(f_t)
        S = g[:, :, None] * S + _outer(1 - g, i_t)
        return S, _read(S, jax.nn.silu(q_t) * scale)

    state, o = jax.lax.scan(step, state, (q, f, i))
    return o, state


def rwkv6(r, k, v, w, u, state):
    """RWKV-6: "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (arXiv 2404.05892).

    o_t = (S_{t-1} + diag(u) k_t v_t^T)^T r_t, and only then S_t = diag(exp(-exp(w_t))) S_{t-1} + k_t v_t^T: the output
    reads the state from before this token and adds the token itself weighted by the bonus u instead. r is not scaled.
    Token shift, the low-rank maps that make w, the norm over each head and the gate are the layer's.

    Re-expresses github.com/BlinkDL/RWKV-LM, `RWKV-v5/cuda/wkv6_cuda.cu`, and
    github.com/fla-org/flash-linear-attention, `fla/ops/rwkv6/recurrent_naive.py` (called with scale 1, as its layer
    `fla/layers/rwkv6.py` does; its own default is dk^(-1/2), and it takes the log decay where this takes w).

    Shapes: r, k, w (time, heads, dk); v (time, heads, dv); u (heads, dk); state (heads, dk, dv).
    """

    def step(S, token):
        r_t, k_t, v_t, w_t = token
        kv = _outer(k_t, v_t)
        o_t = _read(S + u[:, :, None] * kv, r_t)
        return jnp.exp(-jnp.exp(w_t))[:, :, None] * S + kv, o_t

    state, o = jax.lax.scan(step, state, (r, k, v, w))
    return o, state


def mlstm(q, k, v, i, f, state, scaled="k"):
    """mLSTM: "xLSTM: Extended Long Short-Term Memory" (arXiv 2405.04517), eq. 19 to 27, without any stabilisation.

    C_t = sigmoid(f_t) C_{t-1} + exp(i_t) k_t v_t^T, n_t = sigmoid(f_t) n_{t-1} + exp(i_t) k_t and
    h_t = C_t^T q_t / max(|n_t . q_t|, 1). Meant for float64 and input gates of moderate size, as exp(i_t) is unbounded.
    The output gate, the head norm and xLSTM-7B's soft cap of the gates are the layer's.

    `scaled` says who carries dk^(-1/2). "k" is eq. 23 and github.com/NX-AI/xlstm, `xlstm/blocks/mlstm/backends.py`: the
    states hold the scaled keys. "q" is github.com/NX-AI/mlstm_kernels, `mlstm_kernels/jax/recurrent/native_step.py`
    (xLSTM-7B): the states hold the plain keys. The outputs are the same.

    Shapes: q, k (time, heads, dk); v (time, heads, dv); i, f (time, heads); state (C (heads, dk, dv), n (heads, dk)).
    """
    q, k = _scale_one(q, k, scaled)

    def step(carry, token):
        C, n = carry
        q_t, k_t, v_t, i_t, f_t = token
        forget, admit = jax.nn.sigmoid(f_t), jnp.exp(i_t)
        C = forget[:, None, None] * C + admit[:, None, None] * _outer(k_t, v_t)
        n = forget[:, None] * n + admit[:, None] * k_t
        norm = jnp.maximum(jnp.abs(jnp.sum(n * q_t, axis=-1)), 1.0)
        return (C, n), _read(C, q_t) / norm[:, None]

    state, h = jax.lax.scan(step, state, (q, k, v, i, f))
    return h, state


def mlstm_stabilised(q, k, v, i, f, state, scaled="k", eps=1e-6):
    """mLSTM with the running maximum of the log gates (arXiv 2405.04517, eq. 15 to 17), as published.

    m_t = max(log sigmoid(f_t) + m_{t-1}, i_t), and both gates are divided by exp(m_t), so the states are those of
    `mlstm` times exp(-m_t) and the denominator's floor of 1 becomes exp(-m_t). The authors start from m = 0, not from
    minus infinity (which is the same thing as long as C and n start at zero), and add `eps` = 1e-6 to the scaled-down
    denominator: in the units of `mlstm` that is eps exp(m_t), so eps=0 is needed for exact agreement with it.

    Re-expresses github.com/NX-AI/xlstm, `xlstm/blocks/mlstm/backends.py` (`recurrent_step_stabilized_simple`,
    scaled="k"), and github.com/NX-AI/mlstm_kernels, `mlstm_kernels/jax/recurrent/native_step.py` (scaled="q").

    Shapes: as `mlstm`, and state is (C (heads, dk, dv), n (heads, dk), m (heads,)).
    """
    q, k = _scale_one(q, k, scaled)

    def step(carry, token):
        C, n, m = carry
        q_t, k_t, v_t, i_t, f_t = token
        kept = jax.nn.log_sigmoid(f_t) + m
        m = jnp.maximum(kept, i_t)
        forget, admit = jnp.exp(kept - m), jnp.exp(i_t - m)
        C = forget[:, None, None] * C + admit[:, None, None] * _outer(k_t, v_t)
        n = forget[:, None] * n + admit[:, None] * k_t
        norm = jnp.maximum(jnp.abs(jnp.sum(n * q_t, axis=-1)), jnp.exp(-m)) + eps
        return (C, n, m), _read(C, q_t) / norm[:, None]

    state, h = jax.lax.scan(step, state, (q, k, v, i, f))
    return h, state


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
            + beta[:, None, None] * _outer(k_before, v_before)
            + gamma[:, None, None] * _outer(k_t, x_t)
        )
        return (S, k_t, x_t, angle), _read(S, q_t) + D[:, None] * x_t

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


def _outer(k, v):
    return k[:, :, None] * v[:, None, :]


def _read(S, q):
    return jnp.einsum("hkv,hk->hv", S, q)


def _scale_one(q, k, scaled):
    scale = q.shape[-1] ** -0.5
    if scaled == "k":
        return q, k * scale
    if scaled == "q":
        return q * scale, k
    raise ValueError(f"scaled is 'k' or 'q', not {scaled!r}")


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
