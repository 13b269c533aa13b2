"""Mixtures of experts against the published equations, token by token."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import moe_numpy
import numpy as np
import pytest
from helpers import relative_error, trees_close

import ssmkit


WIDTH, TIME = 6, 13
KEY = jax.random.key(0)
OPTIONS = {
    "softmax": {},
    "softmax-unnormalised-shared": dict(norm_topk_prob=False, shared_intermediate_size=4, use_bias=True),
    "one-expert-per-token": dict(num_experts_per_tok=1, router="sigmoid", norm_topk_prob=False),
    "all-experts": dict(num_experts_per_tok=6, gated=False, activation="gelu_exact"),
    "sigmoid-bias": dict(router="sigmoid", use_expert_bias=True, norm_topk_eps=1e-6, routed_scaling_factor=2.5),
    "groups-latent-shared": dict(
        router="sigmoid",
        use_expert_bias=True,
        n_group=3,
        topk_group=2,
        gated=False,
        activation="relu2",
        latent_size=4,
        shared_intermediate_size=7,
        use_bias=True,
    ),
    "shared-gate": dict(shared_intermediate_size=4, shared_expert_gate=True, activation="gelu_pytorch_tanh"),
}


def mixture(dtype=jnp.float32, **options):
    options = dict(num_experts=6, num_experts_per_tok=2, intermediate_size=5) | options
    mixer = ssmkit.MixtureOfExperts(WIDTH, **options, dtype=dtype, key=KEY)
    rng = np.random.default_rng(1)
    spread = lambda leaf: jnp.asarray(rng.normal(0, 0.6, leaf.shape), leaf.dtype)  # biases are not zero
    return jax.tree.map(spread, mixer)


def features(*shape):
    return jnp.asarray(np.random.default_rng(2).normal(0, 1, shape), jnp.float32)


def expected(mixer, x, options):
    each = lambda token: moe_numpy.mixture(mixer, np.asarray(token, np.float64), options.get("activation", "silu"))
    return np.stack([each(token) for token in x])


each: Any = eqx.filter_jit(lambda mixer, x: mixer.each(x))
each_row = eqx.filter_jit(lambda mixer, x: jax.vmap(mixer.each)(x))


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_the_equations(name):
    mixer, x = mixture(**OPTIONS[name]), features(TIME, WIDTH)
    want = expected(mixer, x, OPTIONS[name])
    assert relative_error(each(mixer, x), want) < 2e-6
    assert relative_error(jnp.stack([each(mixer, token) for token in x[:3]]), want[:3]) < 2e-6
    assert relative_error(each_row(mixer, jnp.stack([x, x[::-1]])), np.stack([want, want[::-1]])) < 2e-6
    assert relative_error(each_row(mixer, x), want) < 2e-6


def dense(mixer, x):
    """The same function with every expert for every token, in plain products; weights of others are zero."""
    chosen, weights = mixer.router(x)
    of_all = jnp.zeros((x.shape[0], 6), x.dtype).at[jnp.arange(x.shape[0])[:, None], chosen].add(weights)
    hidden = mixer.experts.activation(jnp.einsum("ti,ehi->teh", x, mixer.experts.gate.weight))
    hidden = hidden * jnp.einsum("ti,ehi->teh", x, mixer.experts.up.weight)
    return jnp.einsum("teh,eoh,te->to", hidden, mixer.experts.down.weight, of_all)


@pytest.mark.parametrize("tokens", [1, TIME])
def test_gradients(tokens):
    """Those of one row, of mapped rows together, and of every row alone, against products in float64."""
    with jax.enable_x64(True):
        mixer, x = mixture(router="sigmoid"), features(2, tokens, WIDTH)
        mixer, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (mixer, x))
        loss = lambda run: lambda mixer, x: jnp.sum(jnp.sin(run(mixer, x)))
        gradient = lambda run: jax.grad(loss(run), argnums=(0, 1))
        one, exact = gradient(lambda mixer, x: mixer.each(x)), gradient(dense)
        want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[exact(mixer, row) for row in x])
        assert trees_close(jax.jit(one)(mixer, x[0]), jax.tree.map(lambda leaf: leaf[0], want), 1e-12)
        assert trees_close(jax.jit(jax.vmap(one, in_axes=(None, 0)))(mixer, x), want, 1e-12)
        d_mixer, d_x = jax.jit(gradient(lambda mixer, x: jax.vmap(mixer.each)(x)))(mixer, x)
        assert trees_close((d_mixer, d_x), (jax.tree.map(lambda leaf: leaf.sum(0), want[0]), want[1]), 1e-12)


@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_narrow_matrices(kind):
    """The narrow matrices are those of all experts, row by row; the router keeps its precision."""
    mixer = ssmkit.quantize(mixture(shared_intermediate_size=4), kind)
    narrow = {"int8": ssmkit.Int8Matrix, "bfloat16": jax.Array}[kind]
    assert all(isinstance(layer.weight, narrow) for layer in (mixer.experts.up, mixer.experts.down, mixer.shared.up))
    assert mixer.router.weight.dtype == jnp.float32
    x = features(TIME, WIDTH)
    want = expected(mixer, x, {})
    bound = 2e-4 if kind == "int8" else 2e-6  # 15 bits of the largest feature
    for got in (each(mixer, x), each_row(mixer, x), jnp.stack([each(mixer, token) for token in x])):
        assert relative_error(got, want) < bound


def test_no_token_is_dropped():
    """All of many tokens may choose one expert; the tiles of tokens are full, or hold a single token."""
    mixer, x = mixture(num_experts_per_tok=1), features(257, WIDTH)
    always = eqx.tree_at(lambda m: m.router.weight, mixer, jnp.zeros((6, WIDTH), jnp.float32).at[4].set(1.0))
    want = expected(always, jnp.abs(x), {})
    assert relative_error(each(always, jnp.abs(x)), want) < 2e-6
    assert relative_error(each(mixer, x), expected(mixer, x, {})) < 2e-6


def test_among_equals_the_first_are_chosen():
    mixer = eqx.tree_at(lambda m: m.router.weight, mixture(num_experts_per_tok=3), jnp.zeros((6, WIDTH), jnp.float32))
    chosen, weights = mixer.router(features(2, WIDTH))
    assert chosen.tolist() == 2 * [[0, 1, 2]]
    np.testing.assert_allclose(weights, 1 / 3, rtol=1e-6)


def test_what_is_not_a_number_stays_so():
    """In one token, and in no other."""
    for mixer in (mixture(), mixture(router="sigmoid", use_expert_bias=True, n_group=3, topk_group=2)):
        x = features(TIME, WIDTH).at[3, 1].set(jnp.nan)
        bad = jnp.isnan(each(mixer, x))
        assert bad[3].all() and bad.sum() == WIDTH
        assert jnp.isnan(each(mixer, x[3])).all()


WHOLE = re.compile(r"^ *(?:ROOT )?%\S+ = \w+\[6,(?:40,6|6,40)\]\S* ([\w-]+)\(", re.MULTILINE)


def whole_arrays(text):
    """The operations that have an array of all experts of a layer as their result; a fusion computes a part."""
    heads = re.finditer(r"^(?:ENTRY )?%(\S+) \(.*?^}", text, re.MULTILINE | re.DOTALL)
    run = [head.group() for head in heads if not re.match("fused|wrapped", head.group(1))]
    return {name for computation in run for name in WHOLE.findall(computation)}


@pytest.mark.parametrize("kind", [None, "int8", "bfloat16"])
def test_one_token_reads_its_experts_only(kind):
    """No operation computes an array of all experts: matrices come in whole, and one expert's are taken out."""
    mixer = mixture(intermediate_size=40)
    mixer = mixer if kind is None else ssmkit.quantize(mixer, kind)
    names = whole_arrays(each.lower(mixer, features(WIDTH)).compile().compiled.as_text())
    assert names and names <= {"parameter", "get-tuple-element", "bitcast"}, names


@pytest.mark.once
@pytest.mark.parametrize("kind", ["int8", "bfloat16"])
def test_a_loop_over_layers_takes_no_experts_out(kind):
    """A token's step, and its derivatives, are those of layer after layer."""
    layers = 3 * [{"mixer": "moe", "num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 40}]
    model = ssmkit.build(ssmkit.LanguageModelConfig(vocab_size=9, hidden_size=WIDTH, layers=layers), key=KEY)
    model = ssmkit.quantize(model, kind)
    scanned = ssmkit.scan_layers(model)
    step: Any = eqx.filter_jit(lambda model, token: model.step(token, model.init_cache())[0])
    compiled = step.lower(scanned, jnp.int32(4)).compile()
    assert not whole_arrays(compiled.compiled.as_text())
    assert relative_error(compiled(scanned, jnp.int32(4)), step(model, jnp.int32(4))) < 1e-6
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.sum(jnp.sin(step(model, jnp.int32(4))))))
    assert trees_close(gradient(scanned), ssmkit.scan_layers(gradient(model)), 1e-2 if kind == "bfloat16" else 1e-5)


def test_a_model_is_saved_and_read(tmp_path):
    layers = [{"mixer": "moe", "num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 5, "router": "sigmoid"}]
    model = ssmkit.build(ssmkit.LanguageModelConfig(vocab_size=9, hidden_size=WIDTH, layers=layers), key=KEY)
    ssmkit.save_pretrained(model, tmp_path)
    assert eqx.tree_equal(ssmkit.from_pretrained(tmp_path), model)
    assert eqx.tree_equal(ssmkit.from_pretrained(tmp_path, quantize="int8"), ssmkit.quantize(model, "int8"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"router": "top"}, "`router` must be one of softmax, sigmoid, got 'top'"),
        ({"num_experts_per_tok": 7}, "`num_experts_per_tok` must be at most `num_experts`, 6, got 7"),
        ({"n_group": 4}, "`n_group` must divide `num_experts`, 6, got 4"),
        ({"n_group": 2, "topk_group": 3}, "`topk_group` must be at most `n_group`, 2, got 3"),
        ({"n_group": 6}, "`n_group` must leave 2 experts or more in a group to compare groups, got 1"),
        (
            {"n_group": 3, "num_experts_per_tok": 3},
            "`topk_group` must leave at least `num_experts_per_tok`, 3,",
        ),
        ({"shared_expert_gate": True}, "`shared_expert_gate` must be False without `shared_intermediate_size`"),
        ({"activation": "swish"}, "`activation` must be one of elu, gelu, "),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture(**options)
