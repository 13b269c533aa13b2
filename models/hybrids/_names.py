"""Where the arrays of common parts lie in files: tables from an array's path in the part to its tensor."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ssmkit.checkpoint import Reshape, Slice, Source, Stack


Table: TypeAlias = dict[str, Any]
"""For each path in a part the name of its tensor, or a tuple of the name and steps as in `Source`."""

Part: TypeAlias = tuple[str, Table]
"""The name of a part in the files, which may be empty, and its arrays."""


def under(path: str, name: str, table: Table) -> dict[str, Source]:
    """The sources of the arrays of one part.

    **Arguments:**

    - `path`: the path of the part in the model.
    - `name`: the name of the part in the files.
    - `table`: its arrays.
    """
    return {path: Source(entry[0], tuple(entry[1:])) for path, entry in within(path, name, table).items()}


def within(path: str, name: str, table: Table) -> Table:
    """The table of a part for the part that holds it. The arguments are those of `under`."""
    entries = {inner: (entry,) if isinstance(entry, str) else entry for inner, entry in table.items()}
    return {f"{path}.{inner}": (f"{name}.{entry[0]}", *entry[1:]) for inner, entry in entries.items()}


def linear(path: str, name: str) -> dict[str, str]:
    """A `Linear`."""
    return {f"{path}.weight": f"{name}.weight", f"{path}.bias": f"{name}.bias"}


def linears(*names: str, **others: str) -> dict[str, str]:
    """Several `Linear`s, whose paths are their names, and others with names by their paths."""
    pairs = {name: name for name in names} | others
    return {path: name for pair in pairs.items() for path, name in linear(*pair).items()}


def attention(*, q_norm: str = "q_norm", k_norm: str = "k_norm", o_proj: str = "o_proj") -> Table:
    """An `AttentionMixer`, with these names of its layers."""
    layers = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "o_proj": o_proj}
    tables = [linear(path, name) for path, name in layers.items()]
    norms = {"q_norm.weight": f"{q_norm}.weight", "k_norm.weight": f"{k_norm}.weight"}
    return {path: name for table in (*tables, norms) for path, name in table.items()}


def mlp(up: str = "up_proj", down: str = "down_proj") -> Table:
    """An `MLP`, with these names of its layers."""
    return {**linears(up=up, down=down)}


def gated_mlp(gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj") -> Table:
    """A `GatedMLP`, with these names of its layers."""
    return {**linears(gate=gate, up=up, down=down)}


def fused(name: str, widths: Mapping[str, int]) -> Table:
    """`Linear`s of one input of which a file holds one matrix: the path and the width of each, from the top."""
    ends = dict(zip(widths, itertools.accumulate(widths.values()), strict=True))
    size = sum(widths.values())
    return {
        f"{path}.{array}": (f"{name}.{array}", Slice(end - widths[path], size))
        for path, end in ends.items()
        for array in ("weight", "bias")
    }


def fused_gated_mlp(gate_up: str, down: str, intermediate_size: int) -> Table:
    """A `GatedMLP` of which one matrix holds the gate and, below it, the other projection."""
    return fused(gate_up, {"gate": intermediate_size, "up": intermediate_size}) | linear("down", down)


def experts(count: int, **names: str) -> Table:
    """The experts of a `MixtureOfExperts` that are numbered in the files, with these names of their layers."""
    return {f"experts.{path}.weight": (f"experts.{{}}.{name}.weight", Stack(count)) for path, name in names.items()}


def fused_experts(name: str, intermediate_size: int) -> Table:
    """A router and gated experts. One array holds the gates of all experts and, below each, the other projection."""
    part = lambda index: (
        f"{name}.input_linear.weight",
        Slice(index * intermediate_size, 2 * intermediate_size, axis=1),
    )
    return {
        "router.weight": f"{name}.router.layer.weight",
        "experts.gate.weight": part(0),
        "experts.up.weight": part(1),
        "experts.down.weight": f"{name}.output_linear.weight",
    }


def mamba2(conv_kernel: int) -> Table:
    """A `Mamba2Mixer`."""
    return {
        **linears("in_proj", "out_proj"),
        "conv.weight": ("conv1d.weight", Reshape((-1, 1, conv_kernel))),
        "conv.bias": "conv1d.bias",
        "recurrence.A_log": "A_log",
        "recurrence.dt_bias": "dt_bias",
        "D": "D",
        "norm.weight": "norm.weight",
    }


def two_per_layer(layers: Iterable[tuple[Part, Part]], *, norms: tuple[str, str]) -> dict[str, Source]:
    """The sources of blocks of which every two make up a layer in the files: a mixer, and then an MLP.

    **Arguments:**

    - `layers`: the mixer and the MLP of each layer.
    - `norms`: the names of the norms before the mixer and before the MLP.
    """
    sources: dict[str, Source] = {}
    for i, parts in enumerate(layers):
        for block, norm, (part, table) in zip((2 * i, 2 * i + 1), norms, parts, strict=True):
            sources[f"blocks.{block}.norm.weight"] = Source(f"model.layers.{i}.{norm}.weight")
            sources |= under(f"blocks.{block}.mixer", ".".join(filter(None, ("model.layers", str(i), part))), table)
    return sources


def ends(
    *, embedding: str = "model.embed_tokens", norm: str = "model.norm", head: str = "lm_head"
) -> dict[str, Source]:
    """The embedding, the final norm and the head."""
    parts = {"embedding": embedding, "norm": norm, "head": head}
    return {f"{path}.weight": Source(f"{name}.weight") for path, name in parts.items()}


def one_per_layer(name: str, given: tuple[Any, ...], layers: int) -> list[str]:
    """A message if a field has not one entry for each layer."""
    return (
        [] if len(given) == layers else [f"`{name}` must have one entry for each of {layers} layers, got {len(given)}"]
    )
