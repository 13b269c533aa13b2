"""What the families share: configurations with the keys of HF transformers, and that library's file format."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

import ssmkit
from ssmkit.checkpoint import (
    OWN,
    REQUIRED,
    Architecture,
    CheckpointError,
    Dialect,
    Key,
    Kind,
    Source,
    optional,
    read_keys,
    token_ids,
    unknown_keys,
    without,
)

from .._config import AbstractCheckedConfig, kinds_of
from .._hf_formats import HF_DEAD, HF_WEIGHT_FILES
from .._unsupported_keys import UNSUPPORTED


Content: TypeAlias = Mapping[str, Any]

_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# Keys about training, about HF's kernels and caches, and about lengths, which nothing here limits.
_DEAD = HF_DEAD | frozenset(
    """
    attention_dropout cache_implementation hidden_dropout max_position_embeddings num_logits_to_keep
    output_router_logits pretraining_tp router_aux_loss_coef router_jitter_noise use_mamba_kernels
    """.split()
)


def described(config: AbstractCheckedConfig, **fields: Any) -> ssmkit.LanguageModelConfig:
    """The description of a model: the given fields, and those of the same names that its configuration has."""
    names = [field.name for field in dataclasses.fields(ssmkit.LanguageModelConfig)]
    same = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return ssmkit.LanguageModelConfig(**same | fields)


def renamed(content: Content, names: Mapping[str, str]) -> dict[str, Any]:
    """The content with present names of keys. Where a key is there under both names, the other one counts, as for HF.

    **Arguments:**

    - `content`: the content of a file.
    - `names`: the present name for every other one.
    """
    others = {names[name]: value for name, value in content.items() if name in names}
    return {name: value for name, value in content.items() if name not in names} | others


def hub_layers(content: Content, name: str) -> dict[str, Any]:
    """The content with the published names of layers: `mamba` and `attention`.

    Version 5 of HF transformers writes `linear_attention` and `full_attention`.

    **Arguments:**

    - `content`: the content of a file.
    - `name`: the key that lists the layers.
    """
    old = {"linear_attention": "mamba", "full_attention": "attention"}
    layers = content.get(name)
    if not isinstance(layers, list):
        return dict(content)
    return {**content, name: [old.get(kind, kind) if isinstance(kind, str) else kind for kind in layers]}


def layer(mixer: str, config: AbstractCheckedConfig, fields: str, **others: Any) -> dict[str, Any]:
    """The table of a layer, as in `ssmkit.LanguageModelConfig`.

    **Arguments:**

    - `mixer`: the name of its mixer.
    - `config`: the configuration.
    - `fields`: the fields that are keywords of the mixer, with spaces between them; `keyword=field` where the two have
        different names.
    - `others`: keywords with other values.
    """
    pairs = (each.split("=") for each in fields.split())
    return {"mixer": mixer} | {word: getattr(config, (*field, word)[0]) for word, *field in pairs} | others


def activation(name: str) -> str:
    """The name that an activation of HF transformers has here: their `gelu` is the exact one."""
    return "gelu_exact" if name == "gelu" else name


def family(
    config: type[AbstractCheckedConfig],
    *,
    model_type: str,
    hf_class: str,
    description: Callable[[Any], ssmkit.LanguageModelConfig],
    names: Callable[[Any], Mapping[str, Source]],
    spelled: Callable[[Content], Content] = lambda content: content,
    written: Callable[[Any], Content] = lambda config: {},
    only: Mapping[str, Kind] | None = None,
    dead: Collection[str] = (),
    base: str = "model.",
    embedding: str = "embed_tokens",
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",),
) -> Architecture:
    """Build the architecture of a family.

    **Arguments:**

    - `config`: the class of its configurations, whose fields have the names of HF's keys, and HF's defaults.
    - `model_type`, `hf_class`: the names of HF's model.
    - `description`: describes the model of a configuration as data.
    - `names`: as for `Dialect`.
    - `spelled`: rewrites a file's content, so that all its keys are fields of `config` or keys of `only`.
    - `written`: the keys of a file that differ from the fields of the configuration; `None` leaves a key out.
    - `only`: the kinds of keys that are no fields.
    - `dead`: the keys that never change the model, besides those that all families have.
    - `base`: the prefix of all names of a model with a head.
    - `embedding`: the name of the embedding in it.
    - `ignored`: as for `Dialect`.
    """
    kinds = kinds_of(config)
    fields = {field.name: field for field in dataclasses.fields(config)}  # pyright: ignore[reportArgumentType]
    refused = {name: key for name, key in UNSUPPORTED.items() if name not in dead}
    keys = {**refused, "rope_scaling": Key(without("scaled rotations are not supported"), default=None)}
    keys |= {name: Key(kind, default=OWN) for name, kind in (only or {}).items()}
    for name, field in fields.items():
        kind = token_ids if name in _IDS else kinds[name] if field.default is not None else optional(kinds[name])
        keys[name] = Key(kind, name, REQUIRED if field.default is dataclasses.MISSING else OWN)

    def read(content: Content) -> Any:
        """As `Dialect.read_config`."""
        try:
            return config(**read_keys(spelled(content), keys))
        except ValueError as error:
            raise error if isinstance(error, CheckpointError) else CheckpointError(str(error)) from error

    def write(it: Any, dtype: str) -> dict[str, Any]:
        """As `Dialect.write_config`."""
        content = {"architectures": [hf_class], "model_type": model_type, "dtype": dtype}
        content |= dataclasses.asdict(it) | {name: value for name, value in written(it).items()}
        return {name: value for name, value in content.items() if value is not None or name in _IDS}

    def unknown(content: Content) -> dict[str, Any]:
        """As `Dialect.unknown_keys`."""
        try:
            return unknown_keys(spelled(content), keys, {*_DEAD, *dead})
        except ValueError:  # reading the file says why
            return {}

    dialect = Dialect(
        name="hf",
        config_file="config.json",
        weight_files=HF_WEIGHT_FILES,
        matches=lambda content: content.get("model_type") == model_type,
        read_config=read,
        unknown_keys=unknown,
        write_config=write,
        names=names,
        base=base,
        copies={"lm_head.weight": f"{base}{embedding}.weight"},
        ignored=ignored,
    )
    return Architecture(
        name=model_type,
        config=config,
        description=description,
        dialects=(dialect,),
        layers="num_hidden_layers",
        equal_layers=False,
    )
