"""Mamba-2 (arXiv 2405.21060)."""

import math
from collections.abc import Sequence
from typing import Annotated

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit
from ssmkit.checkpoint import checked, pair

from ._time_steps import initial_dt_bias


def implied_sizes(channels: int, d_ssm: int | None, head_dim: int) -> dict[str, int]:
    """The default sizes of a mixer with so many channels."""
    d_ssm = channels if d_ssm is None else d_ssm
    return {"d_ssm": d_ssm, "num_heads": d_ssm // head_dim}


def contradictions(what: str, channels: int, d_ssm: int, num_heads: int, head_dim: int, n_groups: int) -> list[str]:
    """Messages if the heads do not make up the channels of the SSM, or the groups do not divide the heads."""
    if not 0 < d_ssm <= channels:
        return [f"`d_ssm` must be in [1, {what} = {channels}], got {d_ssm}"]
    if num_heads * head_dim != d_ssm:
        what, got = what if d_ssm == channels else "`d_ssm`", f"{num_heads} * {head_dim}"
        return [f"`num_heads` * `head_dim` must be {what} = {d_ssm}, got {got}: choose another `head_dim`"]
    if num_heads % n_groups != 0:
        return [f"`n_groups` must divide the {num_heads} heads, got {n_groups}"]
    return []


class Mamba2Inputs(eqx.Module):
    """The inputs of the recurrence for one token; many tokens have a leading `time` axis."""

    x: Float[Array, "*time heads value"]
    B: Float[Array, "*time groups key"]
    C: Float[Array, "*time groups key"]
    dt: Float[Array, "*time heads"]


class Mamba2Recurrence(ssmkit.DiagonalChunkedRecurrence[Mamba2Inputs]):
    r"""$S_t = e^{\Delta_t A} S_{t-1} + \Delta_t B_t x_t^\top$, $y_t = S_t^\top C_t$ per head.

    Here $\Delta = \operatorname{clip}(\operatorname{softplus}(dt + b), \text{limit})$, $A = -e^{A_{log}}$, in float32.
    """

    A_log: Float[Array, " heads"]
    dt_bias: Float[Array, " heads"]
    time_step_limit: tuple[float, float] = eqx.field(static=True)
    state_shape: tuple[int, int, int] = eqx.field(static=True)

    def coefficients(self, inputs: Mamba2Inputs) -> ssmkit.Coefficients:
        """The coefficients of one token, by the equations of the class."""
        dt = jnp.clip(jax.nn.softplus(inputs.dt + self.dt_bias), *self.time_step_limit)
        return ssmkit.Coefficients(
            log_decay=(-jnp.exp(self.A_log) * dt)[:, None], write=inputs.B, value=dt[:, None] * inputs.x, read=inputs.C
        )


class Mamba2Cache(eqx.Module):
    """The cache of a Mamba-2 mixer. Its size does not depend on the number of tokens."""

    window: Float[Array, "*batch window channel"] | tuple[Float[Array, "*batch window _"], ...]
    state: Float[Array, "*batch heads key value"]


class Mamba2Mixer(ssmkit.AbstractRecurrentMixer[Mamba2Cache]):
    r"""The Mamba-2 mixer: projection, causal convolution, recurrence, skip, gated norm, projection (figure 6).

    With $[z, xBC, dt] = W_{in} u$ and $[x, B, C] = \operatorname{silu}(\operatorname{conv}(xBC))$,

    $$y = W_{out} \operatorname{RMSNorm}((\operatorname{SSM}(x, B, C, dt) + D x) \odot \operatorname{silu}(z)).$$

    mamba_ssm has three variants. The norm may come before the gate. There may be no norm. The SSM may act on some of
    the channels only: $W_{in}$ then first gives $z_0$ and $x_0$ for the other channels, and $W_{out}$ takes
    $[\operatorname{silu}(z_0) \odot x_0, \cdot]$.
    """

    in_proj: ssmkit.Linear | ssmkit.Apart
    conv: ssmkit.CausalConv1d | ssmkit.Apart
    recurrence: Mamba2Recurrence
    D: Float[Array, " heads"] | Float[Array, "heads value"]
    norm: ssmkit.GatedRMSNorm | ssmkit.RMSNorm | None
    out_proj: Annotated[ssmkit.Linear, ssmkit.ArrayKind.PROJECTION_OUT]
    groups: int = eqx.field(static=True)
    multipliers: tuple[float, ...] | None = eqx.field(static=True)

    @ssmkit.checks_arguments
    def __init__(
        self,
        width: int,
        *,
        state_size: int = 128,
        head_dim: int = 64,
        num_heads: int | None = None,
        n_groups: int = 1,
        expand: float = 2,
        intermediate_size: int | None = None,
        d_ssm: int | None = None,
        conv_kernel: int = 4,
        chunk_size: int | None = 256,
        use_bias: bool = False,
        use_output_bias: bool | None = None,
        use_conv_bias: bool = True,
        norm_eps: float = 1e-5,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        D_has_hdim: bool = False,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        time_step_limit: Sequence[float] | None = None,
        multipliers: Sequence[float] | None = None,
        dtype: DTypeLike = jnp.float32,
        key: PRNGKeyArray,
    ):
        """Initialise as the paper's code: A is uniform in [1, 16], and step sizes are log-uniform in their range.

        **Arguments:**

        - `width`: the width of the residual stream.
        - `state_size`, `head_dim`, `n_groups`, `d_ssm`, `conv_kernel`, `chunk_size`, `use_bias`, `use_conv_bias`,
            `rmsnorm`, `norm_before_gate`, `D_has_hdim`, `time_step_min`, `time_step_max`, `time_step_floor`: as
            `Mamba2Config`.
        - `num_heads`: `d_ssm / head_dim`, also when `None`; no other value is accepted.
        - `expand`: the mixer has `expand * width` channels, rounded down.
        - `intermediate_size`: the number of channels; `None` for the number that `expand` gives.
        - `use_output_bias`: whether the output projection has a bias; as `use_bias` when `None`.
        - `norm_eps`: the epsilon of the norm.
        - `time_step_limit`: step sizes are clipped to this range; `None` does not clip them.
        - `multipliers`: constant factors of $z$, $x$, $B$, $C$ and $dt$ as $W_{in}$ gives them; `None` for none.
        - `dtype`: the dtype of the projections and the convolution; the parameters of the recurrence, D and the norm
            stay float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range or contradicts another.
        """
        inner = int(expand * width) if intermediate_size is None else intermediate_size
        implied = implied_sizes(inner, d_ssm, head_dim)
        ssm, heads = implied["d_ssm"], implied["num_heads"] if num_heads is None else num_heads
        what = "`expand` * `width`" if intermediate_size is None else "`intermediate_size`"
        for problem in contradictions(what, inner, ssm, heads, head_dim, n_groups):
            raise ValueError(f"{problem}.")
        if multipliers is not None and len(multipliers) != 5:
            raise ValueError(f"Mamba2Mixer: `multipliers` must be 5 numbers, for z, x, B, C and dt, got {multipliers}.")
        limit = (0.0, math.inf) if time_step_limit is None else time_step_limit
        ((least, most),) = checked([(".time_step_limit", limit, pair)])
        keys, size = jax.random.split(key, 4), lambda parts: sum(part.size for part in parts)
        beside = 2 * [ssmkit.Part(inner - ssm, inner - ssm)] if inner > ssm else []
        channels, shared = ssmkit.Part(ssm, heads), ssmkit.Part(n_groups * state_size, n_groups)
        xBC = [channels, shared, shared]
        rows = [*beside, channels, *xBC, ssmkit.Part(heads, heads)]
        self.in_proj = ssmkit.Linear(width, size(rows), use_bias=use_bias, parts=rows, dtype=dtype, key=keys[0])
        self.conv = ssmkit.CausalConv1d(
            size(xBC), conv_kernel, use_bias=use_conv_bias, parts=xBC, dtype=dtype, key=keys[1]
        )
        A_key, dt_key = jax.random.split(keys[2])
        self.recurrence = Mamba2Recurrence(
            A_log=jnp.log(jax.random.uniform(A_key, (heads,), jnp.float32, 1.0, 16.0)),
            dt_bias=initial_dt_bias(heads, time_step_min, time_step_max, time_step_floor, key=dt_key),
            time_step_limit=(least, most),
            state_shape=(heads, state_size, head_dim),
            chunk_size=chunk_size,
        )
        self.D = jnp.ones((heads, head_dim) if D_has_hdim else (heads,), jnp.float32)
        norm = ssmkit.RMSNorm if norm_before_gate else ssmkit.GatedRMSNorm
        self.norm = norm(ssm, groups=n_groups, eps=norm_eps) if rmsnorm else None
        use_output_bias = use_bias if use_output_bias is None else use_output_bias
        self.out_proj = ssmkit.Linear(inner, width, use_bias=use_output_bias, dtype=dtype, key=keys[3])
        self.groups = n_groups
        self.multipliers = None if multipliers is None else tuple(map(float, multipliers))

    def init_cache(self) -> Mamba2Cache:
        """An empty window and a zero state, float32."""
        return Mamba2Cache(window=self.conv.init_state(), state=self.recurrence.init_state())

    def mix(
        self, x: Float[Array, "*time width"], cache: Mamba2Cache, advance: ssmkit.Advance
    ) -> tuple[Float[Array, "*time width"], Mamba2Cache]:
        """The equations of the class, for many tokens or for one."""
        heads, key, value = self.recurrence.state_shape
        groups, axes = self.groups, x.shape[:-1]

        *beside, z, u, B, C, dt = self.in_proj.split(x)
        if self.multipliers is not None:
            z, u, B, C, dt = (m * part for m, part in zip(self.multipliers, (z, u, B, C, dt), strict=True))
        (u, B, C), window = ssmkit.convolve_parts(self.conv, (u, B, C), cache.window, advance, ssmkit.silu)
        u = jnp.reshape(u, (*axes, heads, value))
        inputs = Mamba2Inputs(
            x=u, B=jnp.reshape(B, (*axes, groups, key)), C=jnp.reshape(C, (*axes, groups, key)), dt=dt
        )
        y, state = advance(self.recurrence, inputs, cache.state)
        D = self.D if self.D.ndim == 2 else self.D[:, None]
        y = y + jnp.broadcast_to(D, u.shape) * u
        y = self._gated(jnp.reshape(y, z.shape), z)
        if beside:
            y = jnp.concatenate([ssmkit.silu(beside[0]) * beside[1], y], axis=-1)
        return self.out_proj(y), Mamba2Cache(window=window, state=state)

    def _gated(
        self, y: Float[Array, "*time channel"], z: Float[Array, "*time channel"]
    ) -> Float[Array, "*time channel"]:
        """Gate `y` by `z`, and normalise it after the gate, before the gate, or not at all."""
        if isinstance(self.norm, ssmkit.GatedRMSNorm):
            return self.norm(y, gate=z)
        return (y if self.norm is None else self.norm(y)) * ssmkit.silu(z)
