"""A language model as data: its sizes and norms, and the mixers of its layers by name."""

import dataclasses
import functools
import inspect
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from ._keys import keys_of, record
from ._kinds import Kind, Problems, boolean, checked, factor, items, only, optional, positive, token_ids
from ._residual_model import LanguageModel
from ._shown import shown
from ._table import Table, frozen
from ._types import PRNGKeyArray
from .layers._norms import LayerNorm, RMSNorm, ZeroCentredRMSNorm
from .mixers._mixer import AbstractMixer
from .mixers._names import MIXERS


_NORMS = {"rms_norm": RMSNorm, "zero_centred_rms_norm": ZeroCentredRMSNorm, "layer_norm": LayerNorm}


class Layer(Table):
    """The table of one layer: `{"mixer": name}`, and the mixer's keywords."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """The configuration of a `ssmkit.LanguageModel`. In a file, `model_type` is `"ssmkit"`.

        config = ssmkit.LanguageModelConfig(
            vocab_size=1024,
            hidden_size=128,
            layers=[{"mixer": "gla", "num_heads": 4}, {"mixer": "gated_mlp", "intermediate_size": 344}],
        )
        model = ssmkit.build(config, key=jax.random.key(0))

    **Arguments:**

    - `vocab_size`: the number of ids that can be produced.
    - `hidden_size`: the width of the residual stream.
    - `layers`: the layers, first to last. Each is a table with a mixer's name, `mixer`, and that mixer's keywords. A
        keyword that takes mixers, as that of `parallel` does, holds tables of the same form. A mixer is put into a
        pre-normalised residual branch, unless it is an `ssmkit.AbstractBlock`. An installed package adds mixers by
        entry points of the group `ssmkit.mixers`.
    - `norm`: `"rms_norm"`, `"zero_centred_rms_norm"` or `"layer_norm"`, before every mixer and before the head.
    - `norm_eps`: the epsilon of these norms.
    - `tie_word_embeddings`, `pad_vocab_size_multiple`, `residual_multiplier`, `residual_in_fp32`,
        `embedding_multiplier`, `logit_multiplier`, `final_logit_softcapping`: as for `ssmkit.LanguageModel`.
    - `post_norm`, `embedding_norm`: whether a norm of the same kind follows every mixer, and the embedding.
    - `bos_token_id`, `eos_token_id`, `pad_token_id`: one id, several, or `None`. Generation stops at `eos_token_id`.

    **Raises:** `ValueError` listing every invalid value, and every unknown or missing keyword of a mixer.
    """

    __no_type_check__ = True  # all that is wrong is listed at once

    vocab_size: int
    hidden_size: int
    layers: Sequence[Mapping[str, Any]]
    norm: str = "rms_norm"
    norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    pad_vocab_size_multiple: int = 1
    residual_multiplier: float = 1.0
    residual_in_fp32: bool = True
    post_norm: bool = False
    embedding_multiplier: float = 1.0
    embedding_norm: bool = False
    logit_multiplier: float = 1.0
    final_logit_softcapping: float | None = None
    bos_token_id: int | Sequence[int] | None = None
    eos_token_id: int | Sequence[int] | None = None
    pad_token_id: int | Sequence[int] | None = None

    def __post_init__(self):
        names = [field.name for field in dataclasses.fields(self)]
        try:
            values = checked((name, getattr(self, name), KINDS[name]) for name in names)
        except Problems as problems:
            raise ValueError(f"LanguageModelConfig: {problems}.") from None
        for name, value in zip(names, values, strict=True):
            object.__setattr__(self, name, value)


def build_language_model(
    config: LanguageModelConfig, *, described: Any = None, key: PRNGKeyArray, dtype: DTypeLike = jnp.float32
) -> LanguageModel:
    """Build the model of a configuration, initialised at random.

    **Arguments:**

    - `config`: the configuration.
    - `described`: the configuration of which `config` is the description, which becomes `model.config`; `None` for
        `config` itself.
    - `key`: the key for the initialisation.
    - `dtype`: the dtype of projections, convolutions and embeddings. Arrays that a mixer keeps in float32 stay float32.

    **Raises:** `ValueError` naming the layer whose keywords do not fit.
    """
    model_key, *keys = jax.random.split(key, len(config.layers) + 1)
    norm = functools.partial(_NORMS[config.norm], eps=config.norm_eps)
    return LanguageModel(
        config.vocab_size,
        config.hidden_size,
        [_mixer(f"layers[{i}]", config.hidden_size, layer, keys[i], dtype) for i, layer in enumerate(config.layers)],
        norm=norm,
        tie_word_embeddings=config.tie_word_embeddings,
        pad_vocab_size_multiple=config.pad_vocab_size_multiple,
        residual_multiplier=config.residual_multiplier,
        residual_in_fp32=config.residual_in_fp32,
        post_norm=norm if config.post_norm else None,
        embedding_multiplier=config.embedding_multiplier,
        embedding_norm=norm if config.embedding_norm else None,
        logit_multiplier=config.logit_multiplier,
        final_logit_softcapping=config.final_logit_softcapping,
        config=config if described is None else described,
        dtype=dtype,
        key=model_key,
    )


def _mixer(place: str, width: int, layer: Mapping[str, Any], key: PRNGKeyArray, dtype: DTypeLike) -> AbstractMixer[Any]:
    """Build the mixer of a layer, and first those that its keywords hold.

    **Raises:** `ValueError` naming the layer when its keywords do not fit.
    """
    made, inner = MIXERS[layer["mixer"]], iter(range(1, 2**32))

    def built(place: str, value: Any) -> Any:
        if isinstance(value, Layer):
            return _mixer(place, width, value, jax.random.fold_in(key, next(inner)), dtype)
        if isinstance(value, tuple):
            return tuple(built(f"{place}[{i}]", entry) for i, entry in enumerate(value))
        return value

    keywords = {name: built(f"{place}.{name}", value) for name, value in layer.items() if name != "mixer"}
    given = {"width": width, "dtype": dtype, "key": key}
    taken = {name: given[name] for name in inspect.signature(made).parameters if name in given}
    try:
        return made(**taken, **keywords)
    except (TypeError, ValueError) as error:
        raise ValueError(f"`{place}` ({layer['mixer']}): {error}") from error


def _layer(value: Any) -> Layer:
    """A kind: the table of one layer, with keywords that its mixer has. The mixer itself checks their values."""
    if not isinstance(value, Mapping) or not isinstance(value.get("mixer"), str):
        raise ValueError('a table with the name of a mixer, such as {"mixer": "gla", "num_heads": 4}')
    name = value["mixer"]
    if name not in MIXERS:
        raise Problems([(".mixer", f"must be one of {', '.join(MIXERS.names())}, got {shown(name)}")])
    try:
        made = MIXERS[name]
    except Exception as error:  # of another package
        raise Problems([(".mixer", f"is {name}, which cannot be imported: {error}")]) from error
    table = keys_of(made, without=("width", "dtype", "key"))
    for word, each in inspect.signature(made).parameters.items():
        if (kind := _of_mixers(each.annotation)) is not None:
            table[word] = dataclasses.replace(table[word], parse=kind)
    given = {word: frozen(value[word]) for word in value if word != "mixer"}
    return Layer(mixer=name, **record(table)(given))


def _of_mixers(annotation: Any) -> Kind | None:
    """The kind of a keyword that takes one mixer or several, in a configuration; `None` for other keywords."""
    origin, members = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if inspect.isclass(origin) and issubclass(origin, AbstractMixer):
        return _layer
    return items(_layer) if members and _of_mixers(members[0]) is _layer else None


KINDS = {
    "vocab_size": positive,
    "hidden_size": positive,
    "layers": items(_layer),
    "norm": only(*_NORMS),
    "norm_eps": factor,
    "tie_word_embeddings": boolean,
    "pad_vocab_size_multiple": positive,
    "residual_multiplier": factor,
    "residual_in_fp32": boolean,
    "post_norm": boolean,
    "embedding_multiplier": factor,
    "embedding_norm": boolean,
    "logit_multiplier": factor,
    "final_logit_softcapping": optional(factor),
    "bos_token_id": token_ids,
    "eos_token_id": token_ids,
    "pad_token_id": token_ids,
}
"""The kind of each field of a `LanguageModelConfig`."""
