"""Every mixer is made from a width and keywords, so that a name and keywords describe it in a configuration."""

import inspect
import json
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from helpers import module_classes
from jaxtyping import DTypeLike, PRNGKeyArray

import ssmkit


KEY = jax.random.key(0)
WIDTH = 640  # what the defaults of all of them divide
MIXERS = [
    cls
    for cls in module_classes()
    if issubclass(cls, ssmkit.AbstractMixer)
    and not issubclass(cls, ssmkit.AbstractBlock | ssmkit.ParallelMixer)  # which are made of mixers
    and not inspect.isabstract(cls)
]
# Papers and their code have these for what `state_size`, `head_dim`, `n_groups` and others are here.
OTHER_NAMES = """
    d_state headdim ngroups n_heads heads conv_size d_conv kernel_size conv1d_width conv_bias lru_width hidden
    expand_ratio head_size qk_dim_factor v_dim_factor dt_min dt_max dt_init_floor dt_rank bias
""".split()
NO_VALUE_OF = {int: "16", float: "x", bool: "no", str: 3, DTypeLike: 3, PRNGKeyArray: 3}


def parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls).parameters)


def required(cls: type) -> dict[str, Any]:
    """Values of the keywords that have no default."""
    without = [name for name, p in parameters(cls).items() if p.default is p.empty and name not in ("width", "key")]
    return {name: 16 for name in without}


def test_every_mixer_is_here():
    assert {"GatedMLP", "GLAMixer", "Mamba2Mixer", "MambaMLP", "RGLRUMixer", "ToyMixer"} <= {c.__name__ for c in MIXERS}


@pytest.mark.parametrize("cls", MIXERS)
def test_a_width_and_keywords(cls):
    width, *keywords = parameters(cls).values()
    assert (width.name, width.annotation) == ("width", int) and width.kind == width.POSITIONAL_OR_KEYWORD
    assert all(keyword.kind == keyword.KEYWORD_ONLY for keyword in keywords)
    assert keywords[-1].name == "key" and keywords[-1].default is inspect.Parameter.empty
    assert not {keyword.name for keyword in keywords} & set(OTHER_NAMES)


@pytest.mark.parametrize("cls", MIXERS)
def test_a_name_and_keywords_describe_it(cls):
    """Through JSON and back, the defaults make the same mixer as they do unsaid."""
    defaults = {name: p.default for name, p in parameters(cls).items() if p.default is not p.empty}
    if "dtype" in defaults:
        defaults["dtype"] = jnp.dtype(defaults["dtype"]).name
    keywords = json.loads(json.dumps(required(cls) | defaults, allow_nan=False))
    described = eqx.filter_eval_shape(lambda key: cls(WIDTH, **keywords, key=key), KEY)
    unsaid = eqx.filter_eval_shape(lambda key: cls(WIDTH, **required(cls), key=key), KEY)
    assert jax.tree.structure(described) == jax.tree.structure(unsaid)
    assert jax.tree.leaves(described) == jax.tree.leaves(unsaid)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    """What an annotation allows, one by one; a dtype is one kind."""
    return (annotation,) if annotation in NO_VALUE_OF else getattr(annotation, "__args__", ())


MISTAKES = [
    pytest.param(cls, name, wrong, id=f"{cls.__name__}-{name}")
    for cls in MIXERS
    for name, p in parameters(cls).items()
    for kind, wrong in NO_VALUE_OF.items()
    if kind in _kinds(p.annotation)
]


@pytest.mark.parametrize(("cls", "name", "wrong"), MISTAKES)
def test_mistakes_name_the_class_and_the_argument(cls, name, wrong):
    arguments = {"width": WIDTH, "key": KEY} | required(cls) | {name: wrong}
    with pytest.raises(ValueError, match=rf"^(\w+: )?`{name}` must .*, got {wrong!r}\.$"):
        cls(**arguments)
