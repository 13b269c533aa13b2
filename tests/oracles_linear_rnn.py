"""What the published recurrences of S5, LRU, RG-LRU, mLSTM and Mamba-3 say, with decays from 1 - 1e-6 to 1e-30."""

from collections.abc import Callable
from typing import Any, NamedTuple

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published_attention
import published_state_spaces
from cases_linear_rnn import BILINEAR, MAMBA3, Sample, features, normal
from helpers import WIDTH, Case, build

from ssmkit.models.lru import LRUMixer
from ssmkit.models.mamba3 import Mamba3Cache, Mamba3Mixer
from ssmkit.models.mlstm import MLSTMCache, MLSTMMixer
from ssmkit.models.rg_lru import RGLRUInputs, RGLRURecurrence
from ssmkit.models.s5 import S5Mixer


# Against the published recurrences, where the decays of a token are anything from 1 - 1e-6 to 1e-30.


class Oracle(NamedTuple):
    """A module, and in float64 what it should compute."""

    id: str
    make: Callable[[], Any]
    oracle: Callable[[Any, Any, Any], tuple[Any, Any]]  # (module, inputs, state) -> (outputs, final state)
    sample: Sample  # the inputs of `time` tokens


def _built(make: Callable[[jax.Array], Any]) -> Any:
    """With random parameters everywhere."""
    return build(Case("", make, features(1)))


def _linear(layer: Any, x: jax.Array) -> jax.Array:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias[None]


def _complex_maps(module: Any) -> tuple[jax.Array, jax.Array]:
    B = module.B.weight[::2], module.B.weight[1::2]
    C = module.C.weight[:, ::2], module.C.weight[:, 1::2]
    return jax.lax.complex(*B), jax.lax.complex(*C)


def _one_number(x: jax.Array) -> jax.Array:
    return x[..., None, None]


def _s5(**options: Any) -> S5Mixer:
    """The decays differ between modes, not between tokens."""
    module = _built(lambda key: S5Mixer(WIDTH, state_size=48, blocks=2, key=key, **options))
    rng = np.random.default_rng(1)
    step = np.exp(rng.uniform(np.log(1e-3), np.log(5e-3), 24))
    new = against.log_decays(rng, 24) / step, rng.uniform(-np.pi, np.pi, 24) / step, np.log(step)
    return eqx.tree_at(
        lambda m: (m.recurrence.Lambda_re, m.recurrence.Lambda_im, m.recurrence.log_step),
        module,
        tuple(jnp.asarray(array, jnp.float32) for array in new),
    )


def _s5_bilinear() -> S5Mixer:
    """Also modes that grow, one that stands still and one that is wiped out at every token."""
    module = _s5(**BILINEAR, step_rescale=2.0)
    step, rng = 2.0 * np.exp(np.asarray(module.recurrence.log_step, np.float64)), np.random.default_rng(1)
    z = np.concatenate([0.02 * rng.random(4), [0.0], -np.exp(rng.uniform(np.log(1e-6), np.log(1e3), 19))])
    new = z / step, rng.uniform(-3.0, 3.0, 24) / step
    return eqx.tree_at(
        lambda m: (m.recurrence.Lambda_re, m.recurrence.Lambda_im),
        module,
        tuple(jnp.asarray(array, jnp.float32) for array in new),
    )


def _s5_oracle(module, u, state):
    r = module.recurrence
    B, C = _complex_maps(module)
    Lambda = jax.lax.complex(r.Lambda_re, r.Lambda_im)
    with jax.numpy_dtype_promotion("standard"):
        log_step = r.log_step + np.log(r.step_rescale)
        y, state = published_state_spaces.s5(
            u, Lambda, B, C, module.D, log_step, state[:, 0, 0], module.conj_sym, r.discretization
        )
    y = jax.nn.gelu(y)
    return y * jax.nn.sigmoid(_linear(module.gate, y)), _one_number(state)


def _lru() -> LRUMixer:
    """As `_s5`; gamma as at initialisation, or slow modes would be so large that the gate were a step function."""
    module = _built(lambda key: LRUMixer(WIDTH, state_size=24, key=key))
    rng = np.random.default_rng(2)
    log_decay = against.log_decays(rng, 24)
    gamma = 0.5 * np.log(-np.expm1(2.0 * log_decay))
    new = np.log(-log_decay), np.log(rng.uniform(1e-3, np.pi, 24)), gamma
    return eqx.tree_at(
        lambda m: (m.recurrence.nu_log, m.recurrence.theta_log, m.recurrence.gamma_log),
        module,
        tuple(jnp.asarray(array, jnp.float32) for array in new),
    )


def _lru_oracle(module, u, state):
    r = module.recurrence
    B, C = _complex_maps(module)
    with jax.numpy_dtype_promotion("standard"):
        y, state = published_state_spaces.lru(u, r.nu_log, r.theta_log, B, C, module.D, r.gamma_log, state[:, 0, 0])
    y = jax.nn.gelu(y)
    return _linear(module.out, y) * jax.nn.sigmoid(_linear(module.gate, y)), _one_number(state)


def _rg_lru() -> RGLRURecurrence:
    """With a Lambda at which a gate can express every decay."""
    module = _built(lambda key: RGLRURecurrence(6, key=key))
    return eqx.tree_at(lambda m: m.Lambda, module, jnp.linspace(9.0, 11.0, 6, dtype=jnp.float32))


def _rg_lru_oracle(module, inputs, state):
    y, state = published_state_spaces.rg_lru(
        inputs.x, inputs.input_gate, inputs.recurrence_gate, module.Lambda, state[:, 0, 0]
    )
    return y[..., None], _one_number(state)


def _rg_lru_spread(rng: np.random.Generator, time: int) -> RGLRUInputs:
    gate = -against.log_decays(rng, time, 6) / (8.0 * np.logaddexp(0.0, np.linspace(9.0, 11.0, 6)))
    return RGLRUInputs(
        x=normal(rng, time, 6),
        input_gate=normal(rng, time, 6),
        recurrence_gate=jnp.asarray(np.log(gate) - np.log1p(-gate), jnp.float32),
    )


# The first features of a mixer's input are its gates, as multiples of `UNIT`.
UNIT, GATED_WIDTH, GATE_HEADS = 64.0, 12, 3

_CAP = 100.0


def _picking(weight: jax.Array, first_row: int, feature: int) -> jax.Array:
    """A projection whose outputs from `first_row` are the features from `feature`."""
    rows = np.array(weight)
    rows[first_row : first_row + GATE_HEADS] = UNIT * np.eye(GATE_HEADS, rows.shape[1], feature)
    return jnp.asarray(rows)


def _gated(*gates: np.ndarray, rng: np.random.Generator) -> jax.Array:
    free = rng.normal(size=(gates[0].shape[0], GATED_WIDTH - GATE_HEADS * len(gates)))
    return jnp.asarray(np.concatenate([*(gate / UNIT for gate in gates), free], axis=1), jnp.float32)


def _mlstm() -> MLSTMMixer:
    """With a soft cap at which a gate can express every decay."""
    module = _built(lambda key: MLSTMMixer(GATED_WIDTH, num_heads=GATE_HEADS, gate_soft_cap=_CAP, key=key))
    return eqx.tree_at(
        lambda m: (m.fgate_preact.weight, m.fgate_preact.bias),
        module,
        (_picking(module.fgate_preact.weight, 0, 0), jnp.zeros((GATE_HEADS,), jnp.float32)),
    )


def _as_two(number: jax.Array) -> jax.Array:
    """As the state of a running sum: what float64 needs no second number for."""
    return jnp.stack([number, jnp.zeros_like(number)])


def _mlstm_oracle(module, x, cache):
    split = lambda layer: _linear(layer, x).reshape(x.shape[0], GATE_HEADS, -1)
    q, k, v = split(module.q), split(module.k), split(module.v)
    i, f = (_CAP * jnp.tanh(_linear(layer, x) / _CAP) for layer in (module.igate_preact, module.fgate_preact))
    before = cache.state[..., :-1], cache.state[..., -1], cache.log_scale.sum(0)
    h, (C, n, m) = published_attention.mlstm_stabilised(q, k, v, i, f, before, scaled="q")
    h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-6)
    h = h.reshape(x.shape[0], -1) * module.multihead_norm.weight[None]
    y = _linear(module.out_proj, jax.nn.sigmoid(_linear(module.ogate_preact, x)) * h)
    return y, MLSTMCache(log_scale=_as_two(m), state=jnp.concatenate([C, n[..., None]], axis=-1))


def _mlstm_spread(rng: np.random.Generator, time: int) -> jax.Array:
    log_decay = against.log_decays(rng, time, GATE_HEADS)
    return _gated(_CAP * np.arctanh((log_decay - np.log(-np.expm1(log_decay))) / _CAP), rng=rng)


def _mamba3(rank: int | None, A_activation: str, norm: bool = False) -> Callable[[], Mamba3Mixer]:
    options = MAMBA3 | dict(head_dim=8, n_groups=3, mimo_rank=rank, A_activation=A_activation, is_outproj_norm=norm)

    def make():
        module = _built(lambda key: Mamba3Mixer(GATED_WIDTH, **options, key=key))
        dt = sum(_mamba3_sizes(module)[:4])
        weight = _picking(_picking(module.in_proj.weight, dt, 0), dt + GATE_HEADS, GATE_HEADS)
        bias = jnp.zeros((GATE_HEADS,), jnp.float32)
        return eqx.tree_at(lambda m: (m.in_proj.weight, m.recurrence.dt_bias), module, (weight, bias))

    return make


def _mamba3_sizes(module: Mamba3Mixer) -> list[int]:
    heads, rank, key = module.B_bias.shape
    inner = module.out_proj.weight.shape[1]
    return [inner, inner] + 2 * [rank * module.n_groups * key] + 3 * [heads] + [module.phase.shape[1]]


def _mamba3_oracle(module, x, cache):
    time, (heads, rank, key) = x.shape[0], module.B_bias.shape
    z, u, B, C, dt, A, trap, angles = jnp.split(
        _linear(module.in_proj, x), np.cumsum(_mamba3_sizes(module))[:-1], axis=-1
    )
    z, u = (a.reshape(time, heads, -1) for a in (z, u))

    def prepared(a, norm, bias):
        a = a.reshape(time, rank, module.n_groups, key)
        a = a / jnp.sqrt((a**2).mean(-1, keepdims=True) + 1e-5) * norm.weight[None, None, None]
        return a.repeat(heads // module.n_groups, axis=2).swapaxes(1, 2) + bias[None]

    B, C = prepared(B, module.B_norm, module.B_bias), prepared(C, module.C_norm, module.C_bias)
    before = cache.state, cache.B, cache.x, 2 * jnp.pi * cache.phase.sum(0)
    activation, bias = module.recurrence.A_activation, module.recurrence.dt_bias
    norm = None if module.norm is None else module.norm.weight.reshape(heads, -1)
    with jax.numpy_rank_promotion("allow"):
        if module.mimo_x is None:
            before = before[0], before[1][:, 0], *before[2:]
            y, (S, k, v, angle) = published_state_spaces.mamba3_siso(
                u, dt, A, trap, angles, B[:, :, 0], C[:, :, 0], module.D, bias, before, z, activation, norm
            )
            k = k[:, None]
        else:
            maps = module.mimo_x, module.mimo_o
            y, (S, k, v, angle) = published_state_spaces.mamba3_mimo(
                u, dt, A, trap, angles, B, C, module.D, bias, *maps, before, z, module.mimo_z, activation, norm
            )
    turns = angle / (2 * jnp.pi)
    turns = turns - jax.lax.stop_gradient(jnp.round(turns))
    return _linear(module.out_proj, y.reshape(time, -1)), Mamba3Cache(phase=_as_two(turns), B=k, x=v, state=S)


def _mamba3_spread(A_activation: str) -> Sample:
    """Both factors of the decay vary, the step size less."""

    def sample(rng, time):
        log_decay = against.log_decays(rng, time, GATE_HEADS)
        step = 0.1 * np.sqrt(-log_decay)
        rate = -log_decay / step
        heavy_tail = np.where(rate >= 1.0, rate - 1.0, 1.0 - 1.0 / rate)
        A = heavy_tail if A_activation == "heavy_tail" else rate + np.log(-np.expm1(-rate))
        return _gated(step + np.log(-np.expm1(-step)), A, rng=rng)

    return sample


ORACLES = [
    Oracle("s5", _s5, _s5_oracle, features(WIDTH)),
    Oracle("lru", _lru, _lru_oracle, features(WIDTH)),
    Oracle("rg-lru", _rg_lru, _rg_lru_oracle, _rg_lru_spread),
    Oracle("mlstm", _mlstm, _mlstm_oracle, _mlstm_spread),
    Oracle("mamba3", _mamba3(None, "heavy_tail"), _mamba3_oracle, _mamba3_spread("heavy_tail")),
    Oracle("mamba3-mimo-softplus", _mamba3(2, "softplus"), _mamba3_oracle, _mamba3_spread("softplus")),
    Oracle("mamba3-mimo-norm", _mamba3(2, "heavy_tail", True), _mamba3_oracle, _mamba3_spread("heavy_tail")),
]

# Further options, which need no gradients of their own.
VARIANTS = [
    Oracle("s5-bilinear-unclipped", _s5_bilinear, _s5_oracle, features(WIDTH, 0.1)),
    Oracle("mamba3-norm", _mamba3(None, "heavy_tail", True), _mamba3_oracle, _mamba3_spread("heavy_tail")),
]
