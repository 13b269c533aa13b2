"""HGRN2: gated linear RNNs with state expansion (arXiv 2404.07904)."""

from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, DTypeLike, Float, PRNGKeyArray

import ssmkit

from ._linear_attention import convolved, short_convolution
from ._projections import projection


class HGRN2Inputs(eqx.Module):
    """The inputs of the recurrence for one token, with raw `q` and `f`; many tokens have a leading `time` axis."""

    q: Float[Array, "*time heads key"]
    f: Float[Array, "*time heads key"]
    i: Float[Array, "*time heads value"]


class HGRN2Recurrence(ssmkit.DiagonalChunkedRecurrence[HGRN2Inputs]):
    r"""A recurrence whose key is the complement of the forget gate (arXiv 2404.07904, section 3.2).

    $$g_t = \ell + (1 - \ell) \sigma(f_t), \qquad S_t = \operatorname{diag}(g_t) S_{t-1} + (1 - g_t) i_t^\top, \qquad
    o_t = S_t^\top \operatorname{silu}(q_t) / \sqrt{d_k}$$

    The factor $1/\sqrt{d_k}$ comes from flash-linear-attention, not from the paper. The norm after it cancels it,
    except for the effect of $\epsilon$.

    $\ell$ is a parameter of every key channel, or 0 if there is no parameter. It is clipped to $[0, 1]$.
    """

    lower_bound: Float[Array, "heads key"] | None
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        state_shape: tuple[int, int, int],
        lower_bound: Float[ArrayLike, "..."] | None = None,
        *,
        chunk_size: int | None = None,
    ):
        """Initialise the lower bounds; no random numbers are drawn.

        **Arguments:**

        - `state_shape`: `(heads, key, value)`.
        - `lower_bound`: $\\ell$ in $[0, 1)$: a number, or one for every channel, of shape `(heads * key,)` or
            `(heads, key)`. `None` means that there is no parameter.
        - `chunk_size`: as `ssmkit.DiagonalChunkedRecurrence`.

        **Raises:** `ValueError` for bounds of another shape.
        """
        self.state_shape, self.chunk_size = state_shape, chunk_size
        self.lower_bound = None if lower_bound is None else _per_channel(lower_bound, state_shape[:2])

    def coefficients(self, inputs: HGRN2Inputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        f = inputs.f.astype(jnp.float32)
        if self.lower_bound is None:
            log_decay, write = jax.nn.log_sigmoid(f), jax.nn.sigmoid(-f)
        else:
            bound = jnp.where(self.lower_bound < 0.0, jnp.zeros_like(f), self.lower_bound)
            bound = jnp.where(bound > 1.0, jnp.ones_like(f), bound)
            log_decay, write = _log_gate(f, bound), (1.0 - bound) * jax.nn.sigmoid(-f)
        return ssmkit.Coefficients(
            log_decay=log_decay,
            write=write,
            value=inputs.i,
            read=ssmkit.silu(inputs.q) * self.state_shape[1] ** -0.5,
        )


class HGRN2Cache(eqx.Module):
    """The recurrence's state and, with short convolutions, the window of the last tokens' projections."""

    state: Float[Array, "*batch heads key value"]
    window: Float[Array, "*batch window channel"] | tuple[Float[Array, "*batch window _"], ...] | None = None


class HGRN2Mixer(ssmkit.AbstractRecurrentMixer[HGRN2Cache]):
    r"""Projections, recurrence, norm over all heads at once, projection (arXiv 2404.07904); no output gate.

    $$y = W_o \operatorname{RMSNorm}(\operatorname{HGRN2}(W_q x, W_f x, W_i x))$$

    With `use_short_conv`, the three projections first pass a causal convolution. The lower bound of the forget gate is
    a parameter of the recurrence. In the paper's model, `HGRN2`, the lower bounds of all layers are learnt together.
    """

    q_proj: ssmkit.Linear
    f_proj: ssmkit.Linear
    i_proj: ssmkit.Linear
    conv: ssmkit.CausalConv1d | ssmkit.Apart | None
    recurrence: HGRN2Recurrence
    norm: ssmkit.RMSNorm
    o_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 128,
        num_heads: int | None = None,
        lower_bound: Float[ArrayLike, "..."] | None = None,
        use_short_conv: bool = False,
        conv_kernel: int = 4,
        use_conv_bias: bool = False,
        norm_eps: float = 1e-5,
        chunk_size: int | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise weights normally with standard deviation 0.02, as flash-linear-attention.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`: key channels per head, flash-linear-attention's `expand_ratio`.
        - `num_heads`: `width // state_size` when `None`; each has `width // num_heads` value channels.
        - `lower_bound`: the initial value, as `HGRN2Recurrence`: `l / L` in layer `l` of the `L` layers of the paper.
        - `use_short_conv`, `conv_kernel`, `use_conv_bias`: whether a causal convolution follows the three projections,
            its number of taps, and whether it has a bias.
        - `norm_eps`: the epsilon of the output norm.
        - `chunk_size`: the chunk size of the recurrence.
        - `dtype`: the dtype of the projections and the convolution.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` when the heads do not divide `width`, or an argument is out of range.
        """
        if num_heads is None:
            if width % state_size != 0:
                raise ValueError(
                    f"HGRN2Mixer: `state_size` must divide `width` = {width} unless `num_heads` is given, got "
                    f"{state_size}."
                )
            num_heads = width // state_size
        if width % num_heads != 0:
            raise ValueError(f"HGRN2Mixer: `num_heads` must divide `width` = {width}, got {num_heads}.")
        if isinstance(lower_bound, float | int) and not 0.0 <= lower_bound < 1.0:
            raise ValueError(f"HGRN2Mixer: `lower_bound` must lie in [0, 1), got {lower_bound}.")
        keys, channels = jax.random.split(key, 4), num_heads * state_size
        self.q_proj = projection(width, channels, dtype=dtype, key=keys[0])
        self.f_proj = projection(width, channels, dtype=dtype, key=keys[1])
        self.i_proj = projection(width, width, dtype=dtype, key=keys[2])
        conv_key, by_head = jax.random.fold_in(key, 1), ssmkit.Part(channels, num_heads)
        self.conv = (
            short_convolution(
                [by_head, by_head, ssmkit.Part(width, num_heads)], conv_kernel, use_conv_bias, dtype=dtype, key=conv_key
            )
            if use_short_conv
            else None
        )
        shape = (num_heads, state_size, width // num_heads)
        self.recurrence = HGRN2Recurrence(shape, lower_bound, chunk_size=chunk_size)
        self.norm = ssmkit.RMSNorm(width, eps=norm_eps)
        self.o_proj = projection(width, width, dtype=dtype, key=keys[3])

    def init_cache(self) -> HGRN2Cache:
        """A zero state and an empty window, float32."""
        window = None if self.conv is None else self.conv.init_state()
        return HGRN2Cache(state=self.recurrence.init_state(), window=window)

    def mix(
        self, x: Float[Array, "*time width"], cache: HGRN2Cache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], HGRN2Cache]:
        """The equations of the class, for many tokens or for one."""
        split = lambda channels: jnp.reshape(channels, (*x.shape[:-1], self.recurrence.state_shape[0], -1))
        features = self.q_proj(x), self.f_proj(x), self.i_proj(x)
        features, window = convolved(self.conv, features, cache.window, advance)
        y, state = advance(self.recurrence, HGRN2Inputs(*map(split, features)), cache.state)
        return self.o_proj(self.norm(jnp.reshape(y, x.shape))), HGRN2Cache(state=state, window=window)


def _per_channel(bound: Any, shape: tuple[int, int]) -> Float[Array, "heads key"]:
    try:
        array = jnp.asarray(bound, jnp.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`lower_bound` must be a number, or one for each channel, got {bound!r}.") from error
    if array.shape not in ((), (shape[0] * shape[1],), shape):
        raise ValueError(
            f"`lower_bound` must be a number, or one for each channel: of shape ({shape[0] * shape[1]},) or {shape}, "
            f"got shape {array.shape}."
        )
    return jnp.broadcast_to(array, shape) if array.ndim == 0 else jnp.reshape(array, shape)


def _log_gate(f: Float[Array, "heads key"], bound: Float[Array, "heads key"]) -> Float[Array, "heads key"]:
    r"""The logarithm of $g = \ell + (1 - \ell) \sigma(f)$, to full relative precision, with finite derivatives.

    There are three forms, each used where it loses no digits: from $1 - g$ if $g$ is near 1; as
    $\sigma(f) (1 + \ell e^{-f})$ if the bound hardly matters, or is 0; and directly if the bound matters most.
    """
    complement, gate = (1.0 - bound) * jax.nn.sigmoid(-f), bound + (1.0 - bound) * jax.nn.sigmoid(f)
    share = bound * jnp.exp(jnp.minimum(-f, 80.0))
    near_one = complement < 0.5
    slight = ~near_one & (share < 1.0)
    rest = jnp.log1p(jnp.where(near_one, -complement, jnp.where(slight, share, jnp.zeros_like(f))))
    plain = jnp.log(jnp.where(near_one | slight, jnp.ones_like(f), gate))
    return jnp.where(near_one, rest, jnp.where(slight, jax.nn.log_sigmoid(f) + rest, plain))
