"""S5, LRU, RG-LRU, mLSTM and Mamba-3: how they start, and against HF's layers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import WIDTH, relative_error

from ssmkit.models.lru import LRUMixer
from ssmkit.models.mamba3 import Mamba3Mixer
from ssmkit.models.mlstm import MLSTMMixer
from ssmkit.models.rg_lru import RGLRUMixer
from ssmkit.models.s5 import S5Mixer


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
    step = np.asarray(jax.nn.softplus(Mamba3Mixer(100, headdim=2, key=KEY).recurrence.dt_bias))
    assert 9e-4 < step.min() < 5e-3 and 0.05 < step.max() < 0.101


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


@pytest.mark.filterwarnings("ignore")
def test_hf_recurrent_gemma():
    """Griffin's recurrent block. At positions other than 0 their code is equation 4 too."""
    torch, modeling = (
        pytest.importorskip("torch"),
        pytest.importorskip("transformers.models.recurrent_gemma.modeling_recurrent_gemma"),
    )
    config = modeling.RecurrentGemmaConfig(hidden_size=8, lru_width=12, num_attention_heads=3)
    theirs = _filled(modeling.RecurrentGemmaRecurrentBlock(config, 0), torch)
    names = {name: name for name in _with_biases("linear_x", "linear_y", "linear_out")}
    names |= {f"conv_1d.{array}": f"conv.{array}" for array in ("weight", "bias")}
    for name, gate in {"input": "input", "recurrent": "recurrence"}.items():
        names |= {f"rg_lru.{name}_gate_{array}": f"{gate}_gate.{array}" for array in ("weight", "bias")}
    names["rg_lru.recurrent_param"] = "recurrence.Lambda"
    ours = _loaded(RGLRUMixer(8, lru_width=12, num_attention_heads=3, key=KEY), theirs, names)
    x = np.random.default_rng(0).normal(size=(23, 8)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)[None], torch.arange(1, 24)[None], None, use_cache=False)[0][0].numpy()
    assert relative_error(ours.prefill(jnp.asarray(x), ours.init_cache())[0], expected) <= 2e-6


@pytest.mark.filterwarnings("ignore")
def test_hf_xlstm():
    """The layer of xLSTM-7B."""
    torch, modeling = pytest.importorskip("torch"), pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    if modeling.external_xlstm:
        pytest.skip("HF takes the layer from the package xlstm, whose kernels need a GPU")
    config = modeling.xLSTMConfig(hidden_size=16, num_heads=2, autocast_kernel_dtype="float32", mode="inference")
    theirs = _filled(modeling.xLSTMLayer(config), torch)
    names = {f"{name}.weight": f"{name}.weight" for name in ("q", "k", "v", "ogate_preact", "out_proj")}
    names |= {name: name for name in _with_biases("igate_preact", "fgate_preact")}
    names["multihead_norm.weight"] = "multihead_norm.weight"
    ours = _loaded(MLSTMMixer(16, num_heads=2, key=KEY), theirs, names)
    x = 3.0 * np.random.default_rng(0).normal(size=(93, 16)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)[None])[0][0].numpy()
    assert relative_error(ours.prefill(jnp.asarray(x), ours.init_cache())[0], expected) <= 1e-5


# What constructors refuse.

REFUSED = {
    "s5 blocks": (S5Mixer, dict(blocks=0), "`blocks` must be at least 1, got 0"),
    "s5 pairs": (S5Mixer, dict(state_size=6, blocks=2), "`state_size` must be a positive multiple of 2 .* = 4, got 6"),
    "s5 state": (S5Mixer, dict(state_size=5, blocks=2, conj_sym=False), "multiple of `blocks` = 2, got 5"),
    "lru state": (LRUMixer, dict(state_size=0), "`state_size` must be at least 1, got 0"),
    "lru ring": (LRUMixer, dict(r_min=0.9, r_max=0.5), "0 <= r_min < r_max <= 1, got 0.9 and 0.5"),
    "lru phase": (LRUMixer, dict(max_phase=0.0), "`max_phase` must be above 0, got 0.0"),
    "rg-lru width": (RGLRUMixer, dict(lru_width=0), "`lru_width` must be at least 1, got 0"),
    "rg-lru blocks": (RGLRUMixer, dict(num_attention_heads=3), "`num_attention_heads` must divide the 8 .*, got 3"),
    "rg-lru taps": (RGLRUMixer, dict(num_attention_heads=2, conv1d_width=0), "at least 1, got 0"),
    "mlstm heads": (MLSTMMixer, dict(num_heads=0), "`num_heads` must be at least 1, got 0"),
    "mlstm cap": (MLSTMMixer, dict(num_heads=2, gate_soft_cap=0.0), "`gate_soft_cap` must be above 0, got 0.0"),
    "mlstm keys": (MLSTMMixer, dict(num_heads=8), "`width` \\* `qk_dim_factor` must .* the 8 heads .*, got 4"),
    "mlstm values": (MLSTMMixer, dict(num_heads=4, v_dim_factor=0.25), "`v_dim_factor` must .* the 4 heads .*, got 2"),
    "mamba3 headdim": (Mamba3Mixer, dict(headdim=5), "`headdim` must divide the 16 channels, .*, got 5"),
    "mamba3 groups": (Mamba3Mixer, dict(headdim=4, ngroups=3), "`ngroups` must divide the 4 heads, got 3"),
    "mamba3 rank": (Mamba3Mixer, dict(headdim=4, mimo_rank=0), "`mimo_rank` must be at least 1 or None, got 0"),
    "mamba3 state": (Mamba3Mixer, dict(headdim=4, d_state=7), "`d_state` must be even and at least 2, .*, got 7"),
    "mamba3 angles": (Mamba3Mixer, dict(headdim=4, rope_fraction=1.5), "must rotate 2 to 128 features, got 1.5: 192"),
    "mamba3 A": (Mamba3Mixer, dict(headdim=4, A_activation="relu"), "must be 'heavy_tail' or 'softplus', got 'relu'"),
}


@pytest.mark.parametrize("make, options, message", REFUSED.values(), ids=list(REFUSED))
def test_what_constructors_refuse(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(WIDTH, **options, key=KEY)
