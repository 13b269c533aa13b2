"""Token-by-token oracles of published linear attention.

Each function states one paper's recurrence literally: one `jax.lax.scan` over tokens, one line per equation, no chunks
and no rewriting for speed. Nothing here comes from ssmkit, so an error there cannot hide here. The functions take a
single sequence (time is the leading axis, there is no batch axis) with the values that reach the gates still raw, and
return the outputs with the state after the last token. They keep the dtype they are given: under `jax_enable_x64`
with float64 arrays they run in float64, and `jax.grad` goes through all of them.

Matrix states are (heads, key, value) throughout.
"""

import jax
import jax.numpy as jnp


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
        S = gamma[:, None, None] * S + outer(k_t, v_t)
        return S, read(S, q_t * dk**-0.5)

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
        S = alpha[:, :, None] * S + outer(k_t, v_t)
        return S, read(S, q_t * dk**-0.5)

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
        S = g[:, :, None] * S + outer(1 - g, i_t)
        return S, read(S, jax.nn.silu(q_t) * scale)

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
        kv = outer(k_t, v_t)
        o_t = read(S + u[:, :, None] * kv, r_t)
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
        C = forget[:, None, None] * C + admit[:, None, None] * outer(k_t, v_t)
        n = forget[:, None] * n + admit[:, None] * k_t
        norm = jnp.maximum(jnp.abs(jnp.sum(n * q_t, axis=-1)), 1.0)
        return (C, n), read(C, q_t) / norm[:, None]

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
        C = forget[:, None, None] * C + admit[:, None, None] * outer(k_t, v_t)
        n = forget[:, None] * n + admit[:, None] * k_t
        norm = jnp.maximum(jnp.abs(jnp.sum(n * q_t, axis=-1)), jnp.exp(-m)) + eps
        return (C, n, m), read(C, q_t) / norm[:, None]

    state, h = jax.lax.scan(step, state, (q, k, v, i, f))
    return h, state


def outer(k, v):
    return k[:, :, None] * v[:, None, :]


def read(S, q):
    return jnp.einsum("hkv,hk->hv", S, q)


def _scale_one(q, k, scaled):
    scale = q.shape[-1] ** -0.5
    if scaled == "k":
        return q, k * scale
    if scaled == "q":
        return q * scale, k
    raise ValueError(f"scaled is 'k' or 'q', not {scaled!r}")
