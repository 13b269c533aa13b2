"""The Mamba-2 that `ssmkit train` makes of the table `[model]`, checked before anything is built."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._keys import keys_of, record


if TYPE_CHECKING:
    from ..training import TrainConfig


def complete_model(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every key of a model's configuration, those that the table leaves out with their defaults.

    **Raises:** `ValueError` listing the keys that are unknown or lack, and the values that cannot be.
    """
    _, configuration = _mamba2()
    try:
        completed = dataclasses.asdict(_configured(table, vocab_size=256))
    except ValueError as error:
        name = configuration.__name__
        raise ValueError(f"[model] ({name}): {str(error).rstrip('.').removeprefix(f'{name}: ')}.") from None
    return {name: value for name, value in completed.items() if name != "vocab_size" and value is not None}


def make_model(run: "TrainConfig", vocab_size: int) -> Any:
    """The Mamba-2 that a run starts from.

    **Raises:** `ValueError` when its training takes more memory than the machine has.
    """
    import jax

    build, _ = _mamba2()
    config = _configured(run.model, vocab_size=vocab_size)
    _check_memory(run, build, config)
    return build(config, key=jax.random.key(run.seed))


def _configured(table: Mapping[str, Any], vocab_size: int) -> Any:
    """The configuration that a table describes; how many ids there are, the tokenizer decides.

    **Raises:** `ValueError`, as `record` and the configuration.
    """
    _, configuration = _mamba2()
    keys = keys_of(configuration, without=("vocab_size",))
    return record(keys, functools.partial(configuration, vocab_size=vocab_size))(table)


def _mamba2() -> tuple[Any, Any]:
    """The model's class and that of its configuration."""
    from ..checkpoint import architectures

    build = next(known.model for known in architectures() if known.name == "mamba2")
    return build, next(field.type for field in dataclasses.fields(build) if field.name == "config")


def _check_memory(run: "TrainConfig", build: Any, config: Any) -> None:
    """Weights, gradients and AdamW's two moments, and the logits of a batch: the least that training takes.

    **Raises:** `ValueError` when that is more than the machine has.
    """
    import jax

    try:
        layers = config.num_hidden_layers
        one, two = (_parameters(build, dataclasses.replace(config, num_hidden_layers=count)) for count in (1, 2))
    except (ArithmeticError, MemoryError, TypeError, ValueError) as error:  # arrays that nothing can count
        raise ValueError(f"[model]: the model cannot be built: {str(error).partition(chr(10))[0]}") from error
    parameters = one + (layers - 1) * (two - one)
    needed = 16 * parameters + 4 * run.batch_size * run.context * config.vocab_size
    there = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") or _memory_of_the_host()
    if there is not None and needed > there:
        raise ValueError(
            f"[model]: training {parameters:,} parameters on {run.batch_size} x {run.context} tokens takes at least "
            f"{needed / 2**30:,.0f} GiB of memory, of {there / 2**30:,.0f} GiB: choose a smaller model or batch."
        )


def _parameters(build: Any, config: Any) -> int:
    """How many a model has; none is made."""
    import equinox as eqx
    import jax

    return sum(array.size for array in jax.tree.leaves(eqx.filter_eval_shape(build, config, key=jax.random.key(0))))


def _memory_of_the_host() -> int | None:
    """In bytes; `None` where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
