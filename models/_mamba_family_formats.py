"""What the on-disk formats of Mamba and Mamba-2 have in common."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias, TypeVar

from ssmkit.checkpoint import (
    CheckpointError,
    Dialect,
    Key,
    boolean,
    insert_axis,
    number,
    only,
    positive,
    read_keys,
    token_ids,
    unknown_keys,
    write_keys,
)

from ._mamba_family import AbstractMambaConfig, padded
from ._unsupported_keys import UNSUPPORTED


Config = TypeVar("Config", bound=AbstractMambaConfig)

HF_KEYS = {
    **UNSUPPORTED,
    "expand": Key(positive, "expand", 2),
    "conv_kernel": Key(positive, "conv_kernel", 4),
    "use_bias": Key(boolean, "use_bias", False),
    "use_conv_bias": Key(boolean, "use_conv_bias", True),
    "hidden_act": Key(only("silu", "swish"), "hidden_act", "silu"),
    "rms_norm": Key(only(True), default=True),
    "layer_norm_epsilon": Key(number, "layer_norm_epsilon", 1e-5),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "time_step_min": Key(number, "time_step_min", 0.001),
    "time_step_max": Key(number, "time_step_max", 0.1),
    "time_step_floor": Key(number, "time_step_floor", 1e-4),
}
# How the file was made, how weights were initialised, how outputs are returned.
HF_DEAD = frozenset(
    """
    _attn_implementation_autoset _name_or_path architectures auto_map chunk_size_feed_forward dtype id2label
    initializer_range is_decoder is_encoder_decoder label2id model_type output_attentions output_hidden_states
    problem_type rescale_prenorm_residual return_dict time_step_init_scheme time_step_scale torch_dtype torchscript
    transformers_version use_cache
    """.split()
)

STATE_SPACES_KEYS = {
    **UNSUPPORTED,
    "d_model": Key(positive, "hidden_size", 2560),
    "n_layer": Key(positive, "num_hidden_layers", 64),
    "vocab_size": Key(positive, "vocab_size", 50277),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple", 8),
    "tie_embeddings": Key(boolean, "tie_word_embeddings", True),
    "residual_in_fp32": Key(boolean, "residual_in_fp32", True),
    "rms_norm": Key(only(True), default=True),
    "d_intermediate": Key(only(0), default=0),
    "ssm_cfg.d_conv": Key(positive, "conv_kernel", 4),
    "ssm_cfg.expand": Key(positive, "expand", 2),
    "ssm_cfg.bias": Key(boolean, "use_bias", False),
    "ssm_cfg.conv_bias": Key(boolean, "use_conv_bias", True),
    "ssm_cfg.dt_min": Key(number, "time_step_min", 0.001),
    "ssm_cfg.dt_max": Key(number, "time_step_max", 0.1),
    "ssm_cfg.dt_init_floor": Key(number, "time_step_floor", 1e-4),
}
STATE_SPACES_DEAD = ("attn_cfg", "fused_add_norm")  # settings of attention layers are dead without such layers
STATE_SPACES_LAYERS = ("Mamba1", "Mamba2")  # the first is meant where a file names none


def hf_keys(
    *, vocab_size: int, hidden_size: int, layers: int, state_size: int, tied: bool, tokens: tuple[int, int, int]
) -> dict[str, Key]:
    """The keys of HF's classes that have other defaults in each; `tokens` are the ids of bos, eos and pad."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    return {
        "vocab_size": Key(positive, "vocab_size", vocab_size),
        "hidden_size": Key(positive, "hidden_size", hidden_size),
        "num_hidden_layers": Key(positive, "num_hidden_layers", layers),
        "state_size": Key(positive, "state_size", state_size),
        "tie_word_embeddings": Key(boolean, "tie_word_embeddings", tied),
        **{name: Key(token_ids, name, token) for name, token in zip(names, tokens, strict=True)},
    }


def made(build: Callable[..., Config], fields: Mapping[str, Any], *checked: str) -> Config:
    """A configuration of these fields. Those named by `checked` are derived sizes, compared unless they are `None`."""
    try:
        config = build(**{name: value for name, value in fields.items() if name not in checked})
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    problems = [
        f"`{name}`: got {fields[name]}, but the other keys imply {getattr(config, name)}"
        for name in checked
        if fields[name] is not None and fields[name] != getattr(config, name)
    ]
    if problems:
        raise CheckpointError("The configuration contradicts itself.", problems)
    return config


def refuse_unless(config: Any, format: str, **expressible: Any) -> None:
    """Raise unless the fields that `format` has no key for have the values that it implies."""
    problems = [
        f"`{field}`: got {getattr(config, field)!r}, the format can only express {value!r}"
        for field, value in expressible.items()
        if getattr(config, field) != value
    ]
    if problems:
        raise CheckpointError(f"The {format} format cannot express this model.", problems)


PADDING_KEYS = {
    "unpadded_vocab_size": Key(positive, "vocab_size"),
    "pad_vocab_size_multiple": Key(positive, "pad_vocab_size_multiple"),
}


def _padding(content: Mapping[str, Any]) -> dict[str, int]:
    """The fields that our own two keys set, as long as they explain the `vocab_size` of the file.

    Other software knows neither: it keeps them when it resizes the vocabulary, and HF's own files of old have the
    second one, which says nothing in them.
    """
    try:
        fields = read_keys(content, PADDING_KEYS)
    except CheckpointError:
        return {}
    return fields if padded(**fields) == content.get("vocab_size") else {}


def _unknown_hf(content: Mapping[str, Any], keys: Mapping[str, Key], dead: Collection[str]) -> dict[str, Any]:
    """As `Dialect.unknown_keys`; a padding that the file does not have is none that we know of."""
    unread = {"unpadded_vocab_size"} if not _padding(content) else set()
    return unknown_keys(content, keys, {*dead, *PADDING_KEYS} - unread)


def read_hf(build: Callable[..., Config], content: Mapping[str, Any], keys: Mapping[str, Key], *checked: str) -> Config:
    """The configuration in HF's `content`, whose `vocab_size` counts padding rows; `checked` as for `made`."""
    return made(build, read_keys(content, keys) | _padding(content), *checked)


def write_hf(
    config: AbstractMambaConfig, keys: Mapping[str, Key], *, architecture: str, model_type: str, dtype: str
) -> dict[str, Any]:
    """What `read_hf` reads."""
    content = {"architectures": [architecture], "model_type": model_type, "dtype": dtype} | write_keys(config, keys)
    if config.padded_vocab_size != config.vocab_size:
        content |= write_keys(config, PADDING_KEYS) | {"vocab_size": config.padded_vocab_size}
    return content


def read_state_spaces(content: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    """As `read_keys`; `ssm_cfg` holds arguments of the mixer's class."""
    if _layer(content) not in STATE_SPACES_LAYERS:
        default, *others = STATE_SPACES_LAYERS
        raise CheckpointError(
            f"`ssm_cfg` must name the layer {' or '.join(f'`{name}`' for name in others)}, or none, which means "
            f"`{default}`, got {content['ssm_cfg']!r}."
        )
    return read_keys(_flat(content), keys)


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """With `ssm_cfg.expand` and so on in place of the one key `ssm_cfg`."""
    flat = {name: value for name, value in content.items() if name != "ssm_cfg"}
    return flat | {f"ssm_cfg.{name}": value for name, value in content.get("ssm_cfg", {}).items()}


def write_state_spaces(config: AbstractMambaConfig, keys: Mapping[str, Key]) -> dict[str, Any]:
    """What `read_state_spaces` reads; arguments of the mixer are written where they differ from their defaults."""
    content: dict[str, Any] = {"rms_norm": True, "fused_add_norm": True, "ssm_cfg": {}}
    for name, value in write_keys(config, keys).items():
        mixer_name = name.removeprefix("ssm_cfg.")
        if mixer_name == name:
            content[name] = value
        elif value != keys[name].default:
            content["ssm_cfg"][mixer_name] = value
    return content


def names(layer: Mapping[str, str], embedding: str, prefix: str = "") -> dict[str, str]:
    """Where each array of the model lies.

    **Arguments:**

    - `layer`: for what only this architecture has in a block.
    - `embedding`: the name of the embedding.
    - `prefix`: to all names.
    """
    layer = {
        "norm.weight": "norm.weight",
        "mixer.in_proj.weight": "mixer.in_proj.weight",
        "mixer.in_proj.bias": "mixer.in_proj.bias",
        "mixer.conv.weight": "mixer.conv1d.weight",
        "mixer.conv.bias": "mixer.conv1d.bias",
        "mixer.recurrence.A_log": "mixer.A_log",
        "mixer.D": "mixer.D",
        "mixer.out_proj.weight": "mixer.out_proj.weight",
        "mixer.out_proj.bias": "mixer.out_proj.bias",
        **layer,
    }
    return {
        "embedding.weight": f"{prefix}backbone.{embedding}.weight",
        **{f"blocks.{{}}.{path}": f"{prefix}backbone.layers.{{}}.{name}" for path, name in layer.items()},
        "norm.weight": f"{prefix}backbone.norm_f.weight",
        "head.weight": f"{prefix}lm_head.weight",
    }


Read: TypeAlias = Callable[[Mapping[str, Any]], Any]
Write: TypeAlias = Callable[[Any, str], dict[str, Any]]
FILE_SHAPES = {"blocks.{}.mixer.conv.weight": insert_axis}


def hf(
    layer: Mapping[str, str],
    models: Mapping[str, Mapping[str, Key]],
    dead: Collection[str],
    read_config: Read,
    write_config: Write,
    file_shapes: Mapping[str, Callable] = FILE_SHAPES,
) -> Dialect:
    """HF's dialect.

    **Arguments:**

    - `layer`: as for `names`.
    - `models`: the keys that are understood, by `model_type`.
    - `dead`: those that change nothing.
    - `read_config`, `write_config`, `file_shapes`: as for `Dialect`.
    """
    weights = ("model.safetensors", "pytorch_model.bin")
    return Dialect(
        name="hf",
        config_file="config.json",
        weight_files=tuple(name for weight in weights for name in (weight, f"{weight}.index.json")),
        matches=lambda content: content.get("model_type") in tuple(models),
        read_config=read_config,
        unknown_keys=lambda content: _unknown_hf(content, models[content["model_type"]], dead),
        write_config=write_config,
        names=names(layer, "embeddings"),
        aliases={"backbone.embedding.weight": "backbone.embeddings.weight"},
        base="backbone.",
        copies={"lm_head.weight": "backbone.embeddings.weight"},
        file_shapes=file_shapes,
    )


def state_spaces(
    layer: Mapping[str, str],
    name: str,
    keys: Mapping[str, Key],
    dead: Collection[str],
    read_config: Read,
    write_config: Write,
    file_shapes: Mapping[str, Callable] = FILE_SHAPES,
) -> Dialect:
    """The state-spaces dialect of the layer called `name`, with the `keys` that are understood; the rest as for `hf`.

    Every architecture claims the files that name a layer unknown to all, so that one of them says so.
    """

    def matches(content: Mapping[str, Any]) -> bool:
        """As `Dialect.matches`."""
        ours = "d_model" in content and "n_layer" in content and "model_type" not in content
        return ours and (_layer(content) == name or _layer(content) not in STATE_SPACES_LAYERS)

    return Dialect(
        name="state-spaces",
        config_file="config.json",
        weight_files=("pytorch_model.bin", "model.safetensors"),
        matches=matches,
        read_config=read_config,
        unknown_keys=lambda content: unknown_keys(_flat(content), keys, dead),
        write_config=write_config,
        names=names(layer, "embedding"),
        base="backbone.",
        copies={"lm_head.weight": "backbone.embedding.weight"},
        writes_copies=True,
        file_shapes=file_shapes,
    )


def _layer(content: Mapping[str, Any]) -> Any:
    """The layer that a state-spaces configuration asks for, if it can be told."""
    mixer = content.get("ssm_cfg", {})
    return mixer.get("layer", STATE_SPACES_LAYERS[0]) if isinstance(mixer, dict) else None
