"""Mamba-2 (arXiv 2405.21060)."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, PRNGKeyArray

import ssmkit
from ssmkit.checkpoint import checked, pair

from ._mamba_family import FOLLOWS, AbstractMambaConfig, language_model_parts
from ._time_steps import initial_dt_bias


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mamba2Config(AbstractMambaConfig):
    """The geometry of a Mamba-2 language model, under the key names of HF transformers' `Mamba2Config`.

    Defaults are those of the published state-spaces models, not of HF's class (whose defaults are Codestral's).

    **Arguments:**

    - `vocab_size`: the number of ids that can be produced. The embedding has `padded_vocab_size` rows.
    - `hidden_size`, `num_hidden_layers`: width and depth.
    - `state_size`, `head_dim`: key and value width of each head's state.
    - `expand`: a mixer has `expand * hidden_size` channels, rounded down.
    - `d_ssm`: the number of channels that the SSM acts on, by default all. A gated MLP acts on the others, as in
        mamba_ssm.
    - `num_heads`: `d_ssm / head_dim`, which may be left out; no other value is accepted.
    - `n_groups`: the number of groups of heads that share B and C.
    - `conv_kernel`: the number of taps of the causal convolution.
    - `chunk_size`: the largest number of tokens per chunk of the scan; results do not depend on it.
    - `use_bias`, `use_conv_bias`: whether the projections and the convolution have biases.
    - `layer_norm_epsilon`: the epsilon of every norm.
    - `rmsnorm`: whether the output of the SSM is normalised, in addition to the gate.
    - `norm_before_gate`: whether that norm comes before the gate, not after it.
    - `rms_norm`: whether the norms before every mixer and before the head are RMS norms; otherwise they are layer
        norms, as in mamba_ssm.
    - `d_intermediate`: the number of hidden units, rounded up to a multiple of 128, of a gated MLP after every mixer,
        in its own residual branch, as in mamba_ssm; 0 for no MLP.
    - `residual_in_fp32`: whether the residual stream stays float32 when weights are narrower.
    - `time_step_min`, `time_step_max`, `time_step_floor`: the range of the initial step sizes.
    - `time_step_limit`: step sizes are clipped to this range, in `step` and `prefill` alike.
    - `tie_word_embeddings`: whether the head is the embedding.
    - `pad_vocab_size_multiple`: rows of the embedding are a multiple of this; padding rows are never produced.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: ids of special tokens: one, several, or `None`. A text ends with
        any `eos_token_id`; the other ids are stored without effect.
    - `D_has_hdim`: whether there is one skip weight per channel, not one per head.

    **Raises:** `ValueError` listing every inconsistent key.
    """

    state_size: int = 128
    head_dim: int = 64
    num_heads: int = FOLLOWS
    n_groups: int = 1
    chunk_size: int = 256
    tie_word_embeddings: bool = False
    time_step_limit: tuple[float, float] = (0.0, math.inf)
    D_has_hdim: bool = False
    d_ssm: int = FOLLOWS
    rmsnorm: bool = True
    norm_before_gate: bool = False

    @property
    def intermediate_size(self) -> int:
        """The number of channels of a mixer."""
        return int(self.expand * self.hidden_size)

    def implied_sizes(self) -> dict[str, int]:
        """The default sizes, as in `Mamba2Mixer`."""
        return _implied_sizes(self.intermediate_size, self.d_ssm, self.head_dim)

    def contradictions(self) -> list[str]:
        """Messages if the heads do not make up the channels of the SSM, or the groups do not divide the heads."""
        sizes = self.d_ssm, self.num_heads, self.head_dim, self.n_groups
        return _contradictions("`expand` * `hidden_size`", self.intermediate_size, *sizes)


def _implied_sizes(channels: int, d_ssm: int | None, head_dim: int) -> dict[str, int]:
    d_ssm = channels if d_ssm is None else d_ssm
    return {"d_ssm": d_ssm, "num_heads": d_ssm // head_dim}


def _contradictions(what: str, channels: int, d_ssm: int, num_heads: int, head_dim: int, n_groups: int) -> list[str]:
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
        d_ssm: int | None = None,
        conv_kernel: int = 4,
        chunk_size: int | None = 256,
        use_bias: bool = False,
        use_conv_bias: bool = True,
        norm_eps: float = 1e-5,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        D_has_hdim: bool = False,
        time_step_min: float = 0.001,
        time_step_max: float = 0.1,
        time_step_floor: float = 1e-4,
        time_step_limit: Sequence[float] | None = None,
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
        - `norm_eps`: the epsilon of the norm.
        - `time_step_limit`: step sizes are clipped to this range; `None` does not clip them.
        - `dtype`: the dtype of the projections and the convolution; the parameters of the recurrence, D and the norm
            stay float32.
        - `key`: the key for the initialisation.

        **Raises:** `ValueError` naming the argument that is out of range or contradicts another.
        """
        inner = int(expand * width)
        implied = _implied_sizes(inner, d_ssm, head_dim)
        ssm, heads = implied["d_ssm"], implied["num_heads"] if num_heads is None else num_heads
        for problem in _contradictions("`expand` * `width`", inner, ssm, heads, head_dim, n_groups):
            raise ValueError(f"{problem}.")
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
        self.out_proj = ssmkit.Linear(inner, width, use_bias=use_bias, dtype=dtype, key=keys[3])
        self.groups = n_groups

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


# The keys of a configuration that are keywords of its mixers.
_MIXER_KEYS = """
    state_size head_dim num_heads n_groups expand d_ssm conv_kernel chunk_size use_bias use_conv_bias rmsnorm
    norm_before_gate D_has_hdim time_step_min time_step_max time_step_floor time_step_limit
""".split()


class Mamba2(ssmkit.AbstractResidualLanguageModel[Mamba2Cache]):
    """A Mamba-2 language model."""

    config: Mamba2Config = eqx.field(static=True)
    vocab_size: int = eqx.field(static=True)
    embedding: ssmkit.Embedding
    blocks: tuple[ssmkit.ResidualBlock[Any], ...]
    norm: ssmkit.RMSNorm | ssmkit.LayerNorm
    head: Annotated[ssmkit.Linear, ssmkit.ArrayKind.HEAD] | None

    def __init__(self, config: Mamba2Config, *, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32):
        """Initialise at random, as the paper's code; output projections are scaled by $1/\\sqrt{layers}$.

        **Arguments:**

        - `config`: the geometry.
        - `key`: the key for the initialisation.
        - `dtype`: the dtype of the projections, embedding and convolution; the rest stays float32.
        """
        self.config = config
        self.vocab_size = config.vocab_size
        keywords = {name: getattr(config, name) for name in _MIXER_KEYS}
        mixer = functools.partial(
            Mamba2Mixer, config.hidden_size, norm_eps=config.layer_norm_epsilon, dtype=dtype, **keywords
        )
        self.embedding, self.blocks, self.norm, self.head = language_model_parts(
            config, mixer, tied=config.tie_word_embeddings, key=key, dtype=dtype
        )
