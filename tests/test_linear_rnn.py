"""S5, LRU, RG-LRU, mLSTM and Mamba-3: how they start, and against HF's layers."""

import against
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import published_state_spaces
import pytest
from helpers import WIDTH, relative_error

import ssmkit
from ssmkit.models.lru import LRUMixer
from ssmkit.models.mamba3 import Mamba3Mixer
from ssmkit.models.mlstm import MLSTMMixer
from ssmkit.models.rg_lru import RGLRUInputs, RGLRUMixer
from ssmkit.models.s5 import S5Mixer, S5Recurrence


pytestmark = pytest.mark.once


KEY = jax.random.key(0)


# Initialisation.


def test_s5_starts_from_hippo():
    """Eigenvalues of the normal part of HiPPO-LegS in every block, of which half the modes hold one of each pair."""
    n = np.arange(4)
    below = np.sqrt(np.outer(2 * n + 1, 2 * n + 1))
    expected = np.linalg.eigvals(below / 2 - np.tril(below, -1) - np.diag(n + 1))
    made = [S5Mixer(WIDTH, state_size=8, blocks=2, conj_sym=conj_sym, key=KEY) for conj_sym in (False, True)]
    whole, half = (np.asarray(m.recurrence.Lambda_re) + 1j * np.asarray(m.recurrence.Lambda_im) for m in made)
    for got in (whole, np.concatenate([half, half.conj()])):
        np.testing.assert_allclose(np.sort_complex(got.round(5)), np.sort_complex(np.tile(expected, 2).round(5)), 1e-4)


def test_decays_start_in_their_range():
    """LRU on its ring and normalised, RG-LRU in [0.9, 0.999], Mamba-3's step sizes in [0.001, 0.1]."""
    lru = LRUMixer(WIDTH, state_size=99, r_min=0.5, r_max=0.9, max_phase=0.3, key=KEY).recurrence
    modulus = np.exp(-np.exp(lru.nu_log))
    assert 0.5 <= modulus.min() < 0.6 and 0.8 < modulus.max() <= 0.9 and np.exp(lru.theta_log).max() <= 0.3
    np.testing.assert_allclose(np.exp(lru.gamma_log), np.sqrt(1 - modulus**2), 1e-5)
    rg_lru = np.exp(-jax.nn.softplus(RGLRUMixer(100, key=KEY).recurrence.Lambda))
    assert 0.9 <= rg_lru.min() < 0.95 < 0.99 < rg_lru.max() <= 0.9991
    step = np.asarray(jax.nn.softplus(Mamba3Mixer(100, head_dim=2, key=KEY).recurrence.dt_bias))
    assert 9e-4 < step.min() < 5e-3 and 0.05 < step.max() < 0.101


@pytest.mark.parametrize("rule", ["zoh", "bilinear"])
def test_s5_at_the_edges(rule):
    """Eigenvalues of zero, small, wiped out at once, and growing: in float64 to rounding, with finite gradients."""
    z = np.asarray([0.0, 1e-6, 1e-5j, -1e-3 + 3e-3j, -2.0, -1.9999, -0.5 + 2j, 0.1 + 1j, -30.0 + 1j])
    r = S5Recurrence(z, time_step_min=1.0, time_step_max=1.0, discretization=rule, clip_eigs=False, key=KEY)
    one = jnp.ones(z.shape, jnp.complex64)

    def numbers(r):
        c = r.coefficients(one)
        return jnp.exp(c.log_decay[:, 0]), c.value[:, 0]

    safe = np.where(z == 0, 1.0, z)
    if rule == "zoh":
        expected = np.exp(z), np.where(z == 0, 1.0, np.expm1(safe) / safe)
    else:
        expected = (1 + z / 2) / (1 - z / 2), 1 / (1 - z / 2)
    for got, exact in zip(numbers(r), expected, strict=True):
        np.testing.assert_allclose(got, exact, rtol=2e-6, atol=1e-6)
    gradient = eqx.filter_grad(lambda r: sum(jnp.sum(jnp.abs(part) ** 2) for part in numbers(r)))(r)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    clipped = S5Recurrence(z, time_step_min=1.0, time_step_max=1.0, discretization=rule, key=KEY)
    assert (np.abs(numbers(clipped)[0]) < 1).all() and (np.abs(numbers(r)[0]) > 1).any()


# Against HF transformers.


def _filled(theirs, torch, scale: float = 0.3):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return theirs.eval()


def _loaded(mixer, theirs, names: dict[str, str]):
    """With HF's arrays: `names` maps the paths of its parameters to paths of ours. Stacks of matrices it multiplies
    from the right."""
    arrays = {name: jnp.asarray(array.detach().numpy()) for name, array in theirs.named_parameters()}
    arrays = {name: array.mT if name.endswith("_gate_weight") else array for name, array in arrays.items()}
    assert set(arrays) == set(names)

    def at(tree, path):
        for name in path.split("."):
            tree = getattr(tree, name)
        return tree

    for name, path in names.items():
        shape = at(mixer, path).shape
        mixer = eqx.tree_at(lambda m, path=path: at(m, path), mixer, arrays[name].reshape(shape))
    assert {p for p in map(jax.tree_util.keystr, _paths(mixer))} == {f".{path}" for path in names.values()}
    return mixer


def _paths(mixer):
    return [path for path, leaf in jax.tree.leaves_with_path(mixer) if eqx.is_inexact_array(leaf)]


def _with_biases(*names: str) -> list[str]:
    return [f"{name}.{array}" for name in names for array in ("weight", "bias")]


@pytest.fixture
def recurrent_gemma():
    """HF's Griffin with recurrent blocks alone, and names of the block's parameters with paths of ours."""
    torch, modeling = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma"),
    )
    config = modeling.RecurrentGemmaConfig(
        vocab_size=17,
        hidden_size=8,
        lru_width=8,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=10,
        block_types=("recurrent",),
        logits_soft_cap=3.0,
    )
    model = modeling.RecurrentGemmaForCausalLM(config)
    model = _filled(model, torch)
    names = {name: name for name in _with_biases("linear_x", "linear_y", "linear_out")}
    names |= {f"conv_1d.{array}": f"conv.{array}" for array in ("weight", "bias")}
    for name, gate in {"input": "input", "recurrent": "recurrence"}.items():
        names |= {f"rg_lru.{name}_gate_{array}": f"{gate}_gate.{array}" for array in ("weight", "bias")}
    return torch, model, names | {"rg_lru.recurrent_param": "recurrence.Lambda"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", [0, 1], ids=["first token", "later"])
def test_hf_recurrent_gemma(recurrent_gemma, first):
    """Griffin's recurrent block. At positions other than 0 their code is equation 4 too."""
    torch, model, names = recurrent_gemma
    theirs = model.model.layers[0].temporal_block
    ours = _loaded(RGLRUMixer(8, num_heads=2, scale_first_token=first > 0, key=KEY), theirs, names)
    x = np.random.default_rng(0).normal(size=(23, 8)).astype(np.float32)
    for time in (1, 23):
        with torch.no_grad():
            positions = torch.arange(first, first + time)[None]
            expected = theirs(torch.from_numpy(x[:time])[None], positions, None, use_cache=False)[0][0].numpy()
        got, _ = ours.prefill(jnp.asarray(x[:time]), ours.init_cache())
        assert relative_error(got, expected) <= 2e-6


def test_the_first_token_of_a_sequence():
    """Only the very first, also when it comes after an empty prompt, and not again after a split."""
    mixer = RGLRUMixer(WIDTH, num_heads=2, scale_first_token=False, key=KEY)
    r = mixer.recurrence
    x = 0.5 * jax.random.normal(KEY, (7, WIDTH), jnp.float32)
    gates = mixer.input_gate(x), mixer.recurrence_gate(x)
    wide = (np.asarray(array, np.float64) for array in (x, *gates, r.Lambda, np.zeros(WIDTH)))
    expected, _ = published_state_spaces.rg_lru(*map(jnp.asarray, wide), starts=np.arange(7) == 0)
    seen = jnp.minimum(jnp.arange(7, dtype=jnp.float32), 1.0)
    got, _ = r.chunk_scan(RGLRUInputs(x, *gates, seen), r.init_state())
    assert relative_error(got[..., 0], expected) <= against.BOUND
    plain, _ = r.chunk_scan(RGLRUInputs(x, *gates), r.init_state())
    assert relative_error(plain[..., 0], expected) > 0.1
    whole, _ = mixer.prefill(x, mixer.init_cache())
    _, cache = mixer.prefill(x, mixer.init_cache(), ssmkit.Extent(length=0))
    assert cache.seen == 0
    first, cache = mixer.step(x[0], cache)
    rest, _ = mixer.prefill(x[1:], cache)
    assert relative_error(jnp.concatenate([first[None], rest]), whole) <= 2e-6


# What constructors refuse.

REFUSED = {
    "s5 rule": (
        S5Mixer,
        dict(state_size=4, blocks=1, discretization="euler"),
        "must be 'zoh' or 'bilinear', got 'euler'",
    ),
    "s5 rescale": (S5Mixer, dict(state_size=4, blocks=1, step_rescale=0.0), "`step_rescale` must be above 0, got 0.0"),
    "s5 blocks": (S5Mixer, dict(blocks=0), "`blocks` must be at least 1, got 0"),
    "s5 pairs": (S5Mixer, dict(state_size=6, blocks=2), "`state_size` must be a positive multiple of 2 .* = 4, got 6"),
    "s5 state": (S5Mixer, dict(state_size=5, blocks=2, conj_sym=False), "multiple of `blocks` = 2, got 5"),
    "lru state": (LRUMixer, dict(state_size=0), "`state_size` must be at least 1, got 0"),
    "lru ring": (LRUMixer, dict(r_min=0.9, r_max=0.5), "0 <= r_min < r_max <= 1, got 0.9 and 0.5"),
    "lru phase": (LRUMixer, dict(max_phase=0.0), "`max_phase` must be above 0, got 0.0"),
    "rg-lru width": (RGLRUMixer, dict(intermediate_size=0), "`intermediate_size` must be at least 1, got 0"),
    "rg-lru blocks": (RGLRUMixer, dict(num_heads=3), "`num_heads` must divide the 8 .*, got 3"),
    "rg-lru taps": (RGLRUMixer, dict(num_heads=2, conv_kernel=0), "at least 1, got 0"),
    "mlstm heads": (MLSTMMixer, dict(num_heads=0), "`num_heads` must be at least 1, got 0"),
    "mlstm cap": (MLSTMMixer, dict(num_heads=2, gate_soft_cap=0.0), "`gate_soft_cap` must be above 0, got 0.0"),
    "mlstm keys": (MLSTMMixer, dict(num_heads=8), "`width` \\* `expand_k` must .* the 8 heads .*, got 4"),
    "mlstm values": (MLSTMMixer, dict(num_heads=4, expand_v=0.25), "`expand_v` must .* the 4 heads .*, got 2"),
    "mamba3 head_dim": (Mamba3Mixer, dict(head_dim=5), "`head_dim` must divide the 16 channels, .*, got 5"),
    "mamba3 groups": (Mamba3Mixer, dict(head_dim=4, n_groups=3), "`n_groups` must divide the 4 heads, got 3"),
    "mamba3 rank": (Mamba3Mixer, dict(head_dim=4, mimo_rank=0), "`mimo_rank` must be at least 1, got 0"),
    "mamba3 state": (
        Mamba3Mixer,
        dict(head_dim=4, state_size=7),
        "`state_size` must be even and at least 2, .*, got 7",
    ),
    "mamba3 angles": (Mamba3Mixer, dict(head_dim=4, rope_fraction=1.5), "must rotate 2 to 128 features, got 1.5: 192"),
    "mamba3 A": (Mamba3Mixer, dict(head_dim=4, A_activation="relu"), "must be 'heavy_tail' or 'softplus', got 'relu'"),
}


@pytest.mark.parametrize("make, options, message", REFUSED.values(), ids=list(REFUSED))
def test_what_constructors_refuse(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(WIDTH, **options, key=KEY)
