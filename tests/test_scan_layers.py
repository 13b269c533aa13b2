"""Equal blocks are stacked and run by one loop: the same results, in far less code."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import build, mamba2_config, trees_close, trees_equal_bitwise
from registry import SCANNED
from safetensors.numpy import load_file, save_file

import ssmkit
import ssmkit.compilation
from ssmkit.models import HGRN2, GLAMixer, Mamba2, Mamba2Config


KEY, WIDTH, VOCAB = jax.random.key(0), 16, 29
PROMPTS = [[1, 2, 3], [4], [*range(5, 25)]]
TOKENS = jnp.arange(9, dtype=jnp.int32)


def mamba2(layers=3, dtype=jnp.float32):
    config = mamba2_config(vocab_size=VOCAB, num_hidden_layers=layers, hidden_size=WIDTH, use_bias=True)
    model = Mamba2(config, key=KEY, dtype=dtype)
    return eqx.tree_at(lambda m: m.head.weight, model, replace_fn=lambda weight: 10 * weight)


def hybrid():
    """A recurrence alone, then twice a recurrence, attention and experts."""
    layers: list[dict[str, Any]] = [{"mixer": "gla", "num_heads": 2}]
    experts = {"mixer": "moe", "num_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 24}
    layers += 2 * [layers[0], {"mixer": "attention", "num_heads": 2}, experts]
    return ssmkit.build(ssmkit.LanguageModelConfig(vocab_size=VOCAB, hidden_size=WIDTH, layers=layers), key=KEY)


MODELS = {"mamba2": mamba2, "bfloat16": functools.partial(mamba2, dtype=jnp.bfloat16), "hybrid": hybrid}


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request):
    """A model, and the same one with scanned layers."""
    model = MODELS[request.param]()
    return model, ssmkit.scan_layers(model)


def block(name):
    mixers = {
        "A": lambda: GLAMixer(WIDTH, num_heads=2, key=KEY),
        "B": lambda: ssmkit.GatedMLP(WIDTH, intermediate_size=6, key=KEY),
        "C": lambda: ssmkit.GatedMLP(WIDTH, intermediate_size=7, key=KEY),
        "D": lambda: ssmkit.GatedMLP(WIDTH, intermediate_size=7, use_bias=True, key=KEY),
        "E": lambda: ssmkit.GatedMLP(WIDTH, intermediate_size=7, dtype=jnp.bfloat16, key=KEY),
        "F": lambda: GLAMixer(WIDTH, num_heads=2, chunk_size=7, key=KEY),
    }
    return mixers[name]()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("AAAA", "4A"),
        ("ABC", "A B C"),
        ("CDEAF", "C D E A F"),
        ("ABABABC", "3AB C"),
        ("BAAAA", "B 4A"),
        ("AABAABB", "2AAB B"),
        ("AAABBB", "3A 3B"),
    ],
)
def test_repetitions_are_found(names, expected):
    model = eqx.filter_eval_shape(lambda: ssmkit.LanguageModel(VOCAB, WIDTH, [*map(block, names)], key=KEY))
    blocks = eqx.filter_eval_shape(ssmkit.scan_layers, model).blocks
    found, rest = [], names
    for one in blocks:
        layers, period = (one.layers, len(one.blocks)) if isinstance(one, ssmkit.ScannedBlocks) else (1, 1)
        found.append(f"{layers if layers > 1 else ''}{rest[:period]}")
        rest = rest[layers * period :]
    assert (" ".join(found), rest) == (expected, "")


def test_tokens_and_caches_are_the_same(pair):
    """A batch of unequal prompts, one prompt, a session that goes on, and a stream."""
    model, scanned = pair
    for prompts in (PROMPTS, PROMPTS[:1]):
        expected, got = (ssmkit.generate(one, prompts, 12) for one in pair)
        assert got.tokens.tolist() == expected.tokens.tolist()
        assert trees_close(got.rows.logits, expected.rows.logits, 1e-6)
        expected, got = ssmkit.resume(model, expected, 4), ssmkit.resume(scanned, got, 4)
        assert got.tokens.tolist() == expected.tokens.tolist()
    assert list(ssmkit.stream(scanned, PROMPTS[0], 12)) == list(ssmkit.stream(model, PROMPTS[0], 12))


def test_a_cache_has_an_axis_of_layers_inside_that_of_rows(tmp_path):
    model, scanned = mamba2(), ssmkit.scan_layers(mamba2())
    expected, got = (ssmkit.generate(one, PROMPTS, 5).cache for one in (model, scanned))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *expected)
    assert trees_close(got, ((stacked,),), 1e-5)
    ssmkit.save_cache(got, tmp_path / "session")
    loaded = ssmkit.load_cache(tmp_path / "session", scanned)
    assert trees_equal_bitwise(loaded, got)
    with pytest.raises(ValueError, match="does not fit this model"):
        ssmkit.load_cache(tmp_path / "session", model)
    row = ssmkit.rows.take(loaded, 1)
    after = ssmkit.generate(scanned, [[7]] * 2, 6, cache=ssmkit.rows.fork(row, 2)).tokens
    (alone,) = ssmkit.generate(model, [[7]], 6, cache=ssmkit.rows.fork(ssmkit.rows.take(expected, 1), 1)).tokens
    assert after.tolist() == [alone.tolist()] * 2
    with pytest.raises(ValueError, match="`cache` must have a leading axis of 3 layers on every array, got sizes"):
        scanned.step(jnp.int32(1), jax.tree.map(lambda leaf: leaf[:2], scanned.init_cache()))


def test_gradients_are_the_same():
    model = mamba2()
    gradient = eqx.filter_jit(eqx.filter_grad(lambda model: jnp.sum(jnp.sin(model(TOKENS)))))
    got = ssmkit.unscan_layers(gradient(ssmkit.scan_layers(model)))
    assert trees_close(got, gradient(model), 1e-5)


def test_the_program_does_not_grow_with_depth():
    """It is as long for twelve layers as for three."""
    text = lambda model: jax.jit(lambda model, *of: model.step(*of)).lower(model, jnp.int32(0), model.init_cache())
    sizes = [len(text(ssmkit.scan_layers(mamba2(layers))).as_text().splitlines()) for layers in (3, 12)]
    assert sizes[0] == sizes[1]


def test_a_step_takes_over_the_memory_of_the_cache():
    scanned = ssmkit.scan_layers(mamba2())
    cache = jax.tree.map(jnp.copy, scanned.init_cache())
    step = jax.jit(lambda model, token, cache: model.step(token, cache)[1], donate_argnums=2)
    memory = step.lower(scanned, jnp.int32(0), cache).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(cache))


def test_the_way_back(pair):
    model, scanned = pair
    assert any(isinstance(one, ssmkit.ScannedBlocks) for one in scanned.blocks)
    assert trees_equal_bitwise(ssmkit.unscan_layers(scanned), model)
    assert trees_equal_bitwise(ssmkit.unscan_layers(model), model)


def test_loaded_with_scanned_layers(pair, tmp_path):
    """It is the stacked model bit for bit, also in 8 bits, and its files are those of the model itself."""
    model, scanned = pair
    for name, one in (("whole", model), ("scanned", scanned)):
        ssmkit.checkpoint.check_writable(one)
        ssmkit.save_pretrained(one, tmp_path / name)
    for file in (tmp_path / "whole").iterdir():
        assert (tmp_path / "scanned" / file.name).read_bytes() == file.read_bytes()
    for quantize in (None, "int8"):
        load = functools.partial(ssmkit.from_pretrained, tmp_path / "scanned", quantize=quantize)
        assert trees_equal_bitwise(load(scan_layers=True), ssmkit.scan_layers(load()))


def test_layers_that_are_stored_in_other_dtypes_are_not_stacked(tmp_path):
    ssmkit.save_pretrained(mamba2(4, jnp.bfloat16), tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if ".0." in name and "in_proj.weight" in name)
    save_file(tensors | {name: tensors[name].astype(np.float32)}, tmp_path / "model.safetensors", {"format": "pt"})
    first, rest = ssmkit.from_pretrained(tmp_path, scan_layers=True).blocks
    assert first.mixer.in_proj.weight.dtype == jnp.float32
    assert (rest.layers, rest.blocks[0].mixer.in_proj.weight.dtype) == (3, jnp.bfloat16)


def test_stacked_arrays_keep_their_kinds_and_are_quantised_by_row():
    model = mamba2()
    scanned = ssmkit.scan_layers(model)
    (stack,), one = ssmkit.array_kinds(scanned).blocks[0].blocks, ssmkit.array_kinds(model).blocks[0]
    assert jax.tree.leaves(stack) == jax.tree.leaves(one)
    narrow = ssmkit.quantize(scanned, "int8")
    assert trees_equal_bitwise(narrow, ssmkit.scan_layers(ssmkit.quantize(model, "int8")))
    expected, got = (ssmkit.generate(m, PROMPTS, 8).tokens for m in (ssmkit.unscan_layers(narrow), narrow))
    assert got.tolist() == expected.tolist()


def test_every_layer_drops_features_of_its_own():
    """Each layer adds ones. With equal keys, a feature would come through in all layers or in none."""

    class Same(ssmkit.AbstractMixer[tuple[()]]):
        def init_cache(self):
            return ()

        def prefill(self, x, cache, extent=ssmkit.Extent()):
            return jnp.ones_like(x), cache

        def step(self, x, cache, *, valid=None):
            return jnp.ones_like(x), cache

    blocks = [ssmkit.ResidualBlock(ssmkit.RMSNorm(WIDTH), Same())] * 8
    model = ssmkit.with_dropout(ssmkit.scan_layers(ssmkit.LanguageModel(VOCAB, WIDTH, blocks, key=KEY)), 0.5)
    x = jnp.zeros((40, WIDTH))
    (block,) = ssmkit.layers._dropout.with_keys(model, KEY).blocks
    came_through = block.prefill(x, block.init_cache())[0] / 2
    counts = np.bincount(np.asarray(came_through, int).ravel(), minlength=9)
    assert (counts[1:8] > 0).all() and counts[[0, 8]].sum() < 0.1 * x.size
    dropped = [model.forward(TOKENS, model.init_cache(), key=key)[0] for key in (None, KEY)]
    assert float(jnp.max(jnp.abs(dropped[0] - dropped[1]))) > 1e-3


def test_the_optimizer_treats_a_stack_as_its_layers():
    """Weight decay acts on matrices alone: the vectors of all layers are stacked, and are none."""
    training = pytest.importorskip("ssmkit.training")
    config = training.TrainConfig({}, steps=9, warmup_steps=0, weight_decay=1.0, learning_rate=1e-2)
    model = mamba2(2)
    updates = []
    for params in (model, ssmkit.scan_layers(model)):
        optimizer = training.make_optimizer(config)
        gradients = jax.tree.map(jnp.sin, params)
        updates.append(jax.jit(optimizer.update)(gradients, optimizer.init(params), params)[0])
    assert trees_close(ssmkit.unscan_layers(updates[1]), updates[0], 1e-6)


def test_an_exported_model(tmp_path):
    model = mamba2()
    ssmkit.save_exported(ssmkit.scan_layers(model), tmp_path / "artefact", lengths=[4])
    artefact = ssmkit.load_exported(tmp_path / "artefact")
    expected = ssmkit.generate(model, PROMPTS, 6).tokens.tolist()
    assert ssmkit.generate(artefact, PROMPTS, 6).tokens.tolist() == expected


def test_a_narrow_stream_widens_in_the_first_layer():
    """The embedding is bfloat16, and the sums of the layers are float32."""
    (stack,) = ssmkit.scan_layers(mamba2(dtype=jnp.bfloat16)).blocks
    x = jnp.ones((2, WIDTH), jnp.bfloat16)
    assert stack.prefill(x, stack.init_cache())[0].dtype == jnp.float32


def test_the_registered_model_is_scanned():
    """So that the laws are tested for it."""
    (case,) = SCANNED
    assert [type(one).__name__ for one in build(case).blocks] == ["ResidualBlock", "ScannedBlocks"]


def test_mistakes(tmp_path):
    hgrn2 = HGRN2(VOCAB, 8, 2, state_size=4, intermediate_size=8, key=KEY)
    for function in (ssmkit.scan_layers, ssmkit.unscan_layers):
        with pytest.raises(TypeError, match="`model` must be an `ssmkit.AbstractResidualLanguageModel`, got GatedMLP"):
            function(block("B"))
        with pytest.raises(TypeError, match="the blocks of HGRN2 are computed from other arrays"):
            function(hgrn2)
    with pytest.raises(ValueError, match="`scan_layers` must be True or False, got 3"):
        ssmkit.from_pretrained(tmp_path, scan_layers=3)  # pyright: ignore[reportArgumentType]


@pytest.mark.compilers
@pytest.mark.parametrize(("target", "most"), [("v6e", 55), ("h100", 16)])
def test_what_tpu_and_gpu_make_of_the_loop(target, most):
    """Layers and tokens are loops. What they carry is updated in place, and no state or weight is copied in them."""
    config = Mamba2Config(vocab_size=512, hidden_size=256, num_hidden_layers=6)
    model = eqx.filter_eval_shape(ssmkit.scan_layers, ssmkit.compilation.abstract_model(config, jnp.bfloat16))
    found = ssmkit.compile_for(model, target, length=512, max_new_tokens=32)
    assert found.layers == 6 and found.state_aliased == found.state_bytes and found.host_transfers == ()
    assert [part.name for part in found.parts][-2:] == ["loop 2", "loop 2.1"]  # tokens, and in it layers
    small = config.num_heads * config.state_size * config.head_dim * 4
    assert [copy for part in found.parts[1:] for copy in part.copies if copy.nbytes >= small] == []
    layer = found.parts[-1]
    assert (layer.kernels if target == "h100" else layer.operations) <= most
