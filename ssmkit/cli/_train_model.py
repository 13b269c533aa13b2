"""The model that `ssmkit train` builds from the table `[model]`, checked before anything is built."""

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._keys import keys_of, record
from .._shown import first_line


if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ..checkpoint import Architecture
    from ..training import TrainConfig


def complete_model(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Every key of a model's configuration; keys that the table leaves out have their defaults.

    **Raises:** `ValueError` listing unknown keys, missing keys and invalid values.
    """
    architecture = _architecture(table)
    try:
        completed = dataclasses.asdict(_configured(architecture, table, vocab_size=256))
    except ValueError as error:
        name = architecture.config.__name__
        raise ValueError(f"[model] ({name}): {str(error).rstrip('.').removeprefix(f'{name}: ')}.") from None
    named = {"model_type": architecture.name} if "model_type" in table else {}
    return named | {name: value for name, value in completed.items() if name != "vocab_size" and value is not None}


def make_model(run: "TrainConfig", vocab_size: int, mesh: "Mesh | None" = None) -> Any:
    """Build the model from which a run starts.

    **Raises:** `ValueError` when its training takes more memory than the machine has.
    """
    import jax
    import jax.numpy as jnp

    architecture = _architecture(run.model)
    config = _configured(architecture, run.model, vocab_size=vocab_size)
    _check_memory(run, architecture, config, {} if mesh is None else dict(mesh.shape))
    return architecture.make(config, key=jax.random.key(run.seed), dtype=jnp.float32)


def _architecture(table: Mapping[str, Any]) -> "Architecture":
    """The architecture that a table's `model_type` names; Mamba-2 without a `model_type`.

    **Raises:** `ValueError` when there is no architecture of that name.
    """
    from ..checkpoint import architectures, shown

    name, known = table.get("model_type", "mamba2"), {known.name: known for known in architectures()}
    if not isinstance(name, str) or name not in known:
        raise ValueError(f"[model]: `model_type` must be one of {', '.join(known)}, got {shown(name)}.")
    return known[name]


def _configured(architecture: "Architecture", table: Mapping[str, Any], vocab_size: int) -> Any:
    """The configuration that a table describes; the tokenizer decides the number of ids.

    **Raises:** `ValueError`, as `record` and the configuration.
    """
    keys = keys_of(architecture.config, without=("vocab_size",))
    given = {name: value for name, value in table.items() if name != "model_type"}
    return record(keys, functools.partial(architecture.config, vocab_size=vocab_size))(given)


def _check_memory(run: "TrainConfig", architecture: "Architecture", config: Any, devices: Mapping[str, int]) -> None:
    """Check the memory for weights, gradients, AdamW's two moments, and the logits of a batch, which training needs.

    **Arguments:**

    - `devices`: the number of devices along each axis of the mesh.

    **Raises:** `ValueError` when the machine has less memory, or when the model cannot be built.
    """
    import jax
    import jax.numpy as jnp

    from ..checkpoint._skeleton import parameter_count

    try:
        parameters = parameter_count(architecture, architecture.dialects[0], config, jnp.float32)
    except ValueError as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"[model]: the model cannot be built: {reason}") from error
    rows, parts = devices.get("data", 1), devices.get("model", 1)
    spread = parts * rows if run.fully_sharded else parts
    logits = 4 * run.batch_size * run.context * config.vocab_size
    needed = 16 * parameters // spread + logits // (rows * parts * devices.get("sequence", 1))
    there = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit") or _memory_of_the_host()
    if there is not None and needed > there:
        raise ValueError(
            f"[model]: training {parameters:,} parameters on {run.batch_size} x {run.context} tokens takes at least "
            f"{needed / 2**30:,.0f} GiB of memory, of {there / 2**30:,.0f} GiB: choose a smaller model or batch."
        )


def _memory_of_the_host() -> int | None:
    """The memory of the machine in bytes; `None` if the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
