"""Sources, the steps between a file's tensors and a model's arrays: reading undoes writing, exactly, for every kind."""

import json
import math
import re

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hybrid_variants import hybrid
from hypothesis import given
from plugins import install  # noqa: F401

from ssmkit import LanguageModelConfig, build
from ssmkit.checkpoint import (
    Architecture,
    CheckpointError,
    Dialect,
    Reshape,
    Slice,
    Source,
    Stack,
    Transpose,
    architectures,
    check_writable,
    describe,
    from_pretrained,
    save_pretrained,
)
from ssmkit.export import _manifest
from ssmkit.models import Mamba, Mamba2, Mamba2Config, MambaConfig
from ssmkit.models.hybrids import Mamba2AttentionConfig


# Any chain of steps


@st.composite
def forms(draw, shape=None, steps=(), stacks=0, cuts=0):
    """Sources that together fill the tensors of one name, with the shapes of their arrays: each a name, and steps.

    The steps are classes with arguments, because run-time type checks draw numbers, which no strategy may.
    """
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    kinds = ["end", "reshape", "transpose"]
    kinds += ["slice"] if cuts < 2 and max(shape) > 1 else []
    kinds += ["stack"] if cuts == 0 and stacks < 2 else []
    kind = draw(st.sampled_from(kinds if len(steps) < 5 else ["end"]))
    if kind == "end":
        return [(("t" + ".{}" * stacks, steps), shape)]
    if kind == "reshape":
        flat = draw(st.booleans())
        after = (math.prod(shape),) if flat else (1, *shape)
        stored = tuple(-1 if i == 0 and draw(st.booleans()) else size for i, size in enumerate(shape))
        return draw(forms(after, (*steps, (Reshape, stored)), stacks, cuts))
    if kind == "transpose":
        axes = tuple(draw(st.permutations(range(len(shape)))))
        return draw(forms(tuple(shape[axis] for axis in axes), (*steps, (Transpose, axes)), stacks, cuts))
    if kind == "stack":
        count = draw(st.integers(1, 3))
        return draw(forms((count, *shape), (*steps, (Stack, count)), stacks + 1, cuts))
    axis = draw(st.sampled_from([axis for axis, size in enumerate(shape) if size > 1]))
    cut, size = draw(st.integers(1, shape[axis] - 1)), shape[axis]
    found = []
    for start, stop in ((0, cut), (cut, size)):
        part = (*shape[:axis], stop - start, *shape[axis + 1 :])
        found += draw(forms(part, (*steps, (Slice, start, size, axis)), stacks, cuts + 1))
    return found


@given(forms(), st.sampled_from(["float32", "bfloat16"]))
def test_reading_undoes_writing_and_writing_undoes_reading(drawn, dtype):
    sources = [(Source(name, tuple(kind(*given) for kind, *given in steps)), shape) for (name, steps), shape in drawn]
    generator = np.random.default_rng(0)
    arrays = [np.asarray(jnp.asarray(generator.normal(size=shape), dtype)) for _, shape in sources]
    tensors: dict[str, np.ndarray] = {}
    for (source, _), array in zip(sources, arrays, strict=True):
        source.write(array, tensors)
    assert set(tensors) == {name for source, _ in sources for name in source.names}
    for (source, shape), array in zip(sources, arrays, strict=True):
        assert {tensors[name].shape for name in source.names} == {source.tensor_shape(shape)}
        read = source.read(tensors.__getitem__, shape)
        assert read.dtype == array.dtype and read.shape == shape
        np.testing.assert_array_equal(read, array)
    again: dict[str, np.ndarray] = {}
    for source, shape in sources:
        source.write(source.read(tensors.__getitem__, shape), again)
    assert again.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(again[name], tensor)


@pytest.mark.parametrize(
    "source, tensors, expected",
    [
        (Source("x"), {"x": [[0, 1, 2], [3, 4, 5]]}, [[0, 1, 2], [3, 4, 5]]),
        (Source("x", (Reshape((-1,)),)), {"x": [0, 1, 2, 3, 4, 5]}, [[0, 1, 2], [3, 4, 5]]),
        (Source("x", (Transpose((1, 0)),)), {"x": [[0, 3], [1, 4], [2, 5]]}, [[0, 1, 2], [3, 4, 5]]),
        (Source("x", (Slice(1, 3),)), {"x": [[9, 9, 9], [0, 1, 2], [3, 4, 5]]}, [[0, 1, 2], [3, 4, 5]]),
        (Source("x", (Slice(1, 4, 1),)), {"x": [[9, 0, 1, 2], [9, 3, 4, 5]]}, [[0, 1, 2], [3, 4, 5]]),
        (Source("x.{}.w", (Stack(2),)), {"x.0.w": [0, 1, 2], "x.1.w": [3, 4, 5]}, [[0, 1, 2], [3, 4, 5]]),
        (
            Source("x.{}", (Slice(1, 2), Stack(2), Reshape((2, 1, 3)))),
            {"x.0": [[9, 9, 9], [0, 1, 2]], "x.1": [[9, 9, 9], [3, 4, 5]]},
            [[0, 1, 2], [3, 4, 5]],
        ),
    ],
)
def test_what_each_step_means(source, tensors, expected):
    tensors = {name: np.asarray(tensor) for name, tensor in tensors.items()}
    assert source.names == tuple(tensors)
    np.testing.assert_array_equal(source.read(tensors.__getitem__, (2, 3)), expected)


def test_a_turn_of_three_axes_is_undone():
    """An order of two axes would not do: it is its own inverse."""
    tensors: dict[str, np.ndarray] = {}
    array, source = np.arange(24).reshape(2, 3, 4), Source("x", (Transpose((1, 2, 0)),))
    source.write(array, tensors)
    assert tensors["x"].shape == source.tensor_shape(array.shape) == (4, 2, 3)
    np.testing.assert_array_equal(source.read(tensors.__getitem__, array.shape), array)


def test_of_a_fused_tensor_only_the_part_is_read():
    tensor = np.arange(24).reshape(6, 4)
    part = Source("qkv", (Slice(2, 6), Transpose((1, 0)))).read({"qkv": tensor}.__getitem__, (4, 2))
    assert np.shares_memory(part, tensor) and part.size == 8


@pytest.mark.parametrize(
    "steps, message",
    [
        ((Reshape((4, 5)),), r"no array of shape \(2, 3\): its step Reshape\(stored=\(4, 5\)\)"),
        ((Transpose((0, 0)),), "Transpose"),
        ((Transpose((0, 1, 2)),), "Transpose"),
        ((Slice(1, 2),), "Slice"),
        ((Slice(0, 4, 2),), "Slice"),
        ((Slice(-1, 4),), "Slice"),
        ((Stack(3),), "Stack"),
    ],
)
def test_steps_that_give_no_such_array(steps, message):
    with pytest.raises(CheckpointError, match=message):
        Source("x.{}" if isinstance(steps[0], Stack) else "x", steps).tensor_shape((2, 3))


@pytest.mark.parametrize("name, stacks", [("x", (2,)), ("x.{}.{}", (2,)), ("x.{}", (0,)), ("x.{}.{}", (300, 300))])
def test_sources_that_are_none(name, stacks):
    with pytest.raises(ValueError, match=r"`(name|steps)` must"):
        Source(name, tuple(map(Stack, stacks)))


# A format with steps of every kind


class Mixed(eqx.Module):
    """A model whose arrays lie in a file in every way."""

    config: int = eqx.field(static=True)
    query: jax.Array
    key_value: jax.Array
    experts: jax.Array
    gates: jax.Array
    norm: jax.Array

    def __init__(self, config, *, key, dtype=jnp.float32):
        self.config = config
        keys = jax.random.split(key, 5)
        self.query = jax.random.normal(keys[0], (config, 2), dtype)
        self.key_value = jax.random.normal(keys[1], (2, config, 2), dtype)
        self.experts = jax.random.normal(keys[2], (3, 2, config), dtype)
        self.gates = jax.random.normal(keys[3], (3, 2, config), dtype)
        self.norm = jax.random.normal(keys[4], (config,), jnp.float32)


def mixed_names(size):
    half = lambda start: (Slice(start, 4, 1), Transpose((1, 0)), Stack(3))
    return {
        "query": Source("qkv.weight", (Slice(0, 3 * size),)),
        "key_value": Source("qkv.weight", (Slice(size, 3 * size), Reshape((2 * size, 2)))),
        "experts": Source("experts.{}.gate_up", half(0)),
        "gates": Source("experts.{}.gate_up", half(2)),
        "norm": Source("norm"),
    }


def mixed(**changes):
    fields = {
        "name": "mixed",
        "config_file": "mixed.json",
        "weight_files": ("mixed.safetensors", "mixed.bin"),
        "matches": lambda content: "size" in content,
        "read_config": lambda content: content["size"],
        "write_config": lambda config, dtype: {"size": config},
        "names": mixed_names,
    }
    return Dialect(**fields | changes)


@pytest.fixture
def registered(install):  # noqa: F811
    return lambda dialect: install("ssmkit.architectures", "mixed", Architecture("mixed", int, (dialect,), Mixed))


@pytest.mark.parametrize("files", [("mixed.safetensors",), ("mixed.bin",)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_format_of_all_steps_round_trips(tmp_path, registered, files, dtype):
    registered(mixed(weight_files=files))
    model = Mixed(4, key=jax.random.key(0), dtype=dtype)
    save_pretrained(model, tmp_path, format="mixed")
    shapes = {name: tensor.shape for name, tensor in describe(tmp_path).tensors.items()}
    assert shapes == {"qkv.weight": (12, 2), "norm": (4,)} | {f"experts.{i}.gate_up": (4, 4) for i in range(3)}
    loaded = from_pretrained(tmp_path)
    for one, other in zip(jax.tree.leaves(loaded), jax.tree.leaves(model), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    tensors = {name: tensor.read() for name, tensor in describe(tmp_path).tensors.items()}
    np.testing.assert_array_equal(tensors["qkv.weight"][:4], model.query)
    np.testing.assert_array_equal(tensors["experts.1.gate_up"][:, :2], model.experts[1].T)


def test_tensors_of_such_a_format_that_do_not_fit_are_all_listed(tmp_path, registered):
    registered(mixed())
    save_pretrained(Mixed(4, key=jax.random.key(0)), tmp_path, format="mixed")
    (tmp_path / "mixed.json").write_text('{"size": 5}')
    with pytest.raises(CheckpointError) as error:
        from_pretrained(tmp_path)
    assert error.value.problems == (
        *(f"`experts.{i}.gate_up`: got shape (4, 4), expected (5, 4)" for i in range(3)),
        "`norm`: got shape (4,), expected (5,)",
        "`qkv.weight`: got shape (12, 2), expected (15, 2)",
    )


@pytest.mark.parametrize(
    "path, source, message",
    [
        ("key_value", Source("kv", (Reshape((-1, 2)),)), "`qkv.weight`: its arrays have 8 numbers, and the tensor 24"),
        ("query", Source("qkv.weight", (Slice(0, 13),)), r"`qkv.weight`: its arrays ask for the shapes \(13, 2\) and"),
        ("query", None, "`query`: no tensor holds it"),
    ],
)
def test_formats_with_gaps_are_refused_before_anything_is_written(tmp_path, registered, path, source, message):
    def names(size):
        places = mixed_names(size) | {path: source}
        return {name: place for name, place in places.items() if place is not None}

    registered(mixed(names=names))
    with pytest.raises(CheckpointError, match=message):
        check_writable(Mixed(4, key=KEY), format="mixed")
    with pytest.raises(CheckpointError, match=message):
        save_pretrained(Mixed(4, key=KEY), tmp_path / "out", format="mixed")
    assert not (tmp_path / "out").exists()


def test_a_manifest_holds_steps_of_every_kind():
    sources = mixed_names(4)
    layout = mixed(aliases={"scale": "norm"}).layout(4, sources)
    assert layout.spellings == {"scale": "norm"} and layout.sources == sources
    assert _manifest._LAYOUT(json.loads(json.dumps(_manifest._plain(layout)))) == layout


# The formats that are registered


HYBRID = [{"mixer": "gla", "num_heads": 2}, {"mixer": "attention", "num_heads": 2}]
SMALL = {"vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 2, "state_size": 3}
HEADS, KEY = {"head_dim": 2, "num_attention_heads": 2}, jax.random.key(0)
MODELS = {
    "mamba": lambda: Mamba(MambaConfig(**SMALL), key=KEY),
    "ssmkit": lambda: build(LanguageModelConfig(vocab_size=5, hidden_size=4, layers=HYBRID), key=jax.random.key(0)),
    "mamba2_attention": lambda: build(Mamba2AttentionConfig(**SMALL, **HEADS, attention_layers=(1,)), key=KEY),
    "mamba2": lambda: Mamba2(Mamba2Config(**SMALL, head_dim=2, D_has_hdim=True), key=jax.random.key(0)),
}


@pytest.mark.parametrize(
    "name, format", [(known.name, dialect.name) for known in architectures() for dialect in known.dialects]
)
def test_every_dialect_gives_back_what_it_was_given(name, format):
    """Read-only ones too."""
    (dialect,) = [d for known in architectures() if known.name == name for d in known.dialects if d.name == format]
    model = MODELS[name]() if name in MODELS else hybrid(name)
    arrays = {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(array)
        for path, array in jax.tree_util.tree_flatten_with_path(model)[0]
    }
    layout = dialect.layout(model.config, arrays)
    tensors: dict[str, np.ndarray] = {}
    for path, array in arrays.items():
        layout.sources[path].write(array, tensors)
    specs = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in arrays.items()}
    assert {name: tensor.shape for name, tensor in tensors.items()} == layout.tensor_shapes(specs)
    for path, array in arrays.items():
        np.testing.assert_array_equal(layout.sources[path].read(tensors.__getitem__, array.shape), array)
    assert all(re.fullmatch(r"[\w.]+", name) for name in tensors)
