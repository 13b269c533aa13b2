"""Fused layers held apart.

A fused layer computes several outputs by one product, which is fastest on one device. If heads are spread over devices,
the outputs of one head are rows far apart, so that no device holds whole heads. Apart, every output has its own layer,
which is spread by heads; an output that all heads need is on every device.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._array_kinds import ArrayKind
from ._linear import Part
from ._matrix import Int8Matrix


Tree = TypeVar("Tree")


class Shared(eqx.Module):
    """A layer whose outputs all heads need: no axis of it is spread over heads."""

    layer: Annotated[Any, ArrayKind.SHARED]

    def __call__(self, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
        """The output of the layer."""
        return self.layer(x)


class Apart(eqx.Module):
    """The outputs of a fused layer, each with a layer of its own, which keeps the `parts` of the fused layer."""

    layers: tuple[Any, ...]

    def split(self, x: Float[Array, "*axes in"]) -> tuple[Float[Array, "*axes _"], ...]:
        """The outputs, as `Linear.split` gives them."""
        return tuple(layer(x) for layer in self.layers)

    def init_state(self) -> tuple[Any, ...]:
        """The state before the first token of every layer, if these are operators."""
        return tuple(layer.init_state() for layer in map(whole, self.layers))


def apart(tree: Tree, devices: int) -> Tree:
    """Hold every fused layer of a model apart, as so many devices need it.

    **Arguments:**

    - `tree`: a model, or a part of one; its leaves may be anything that `part_of` takes.
    - `devices`: the number of devices over which heads are spread. On one device the model stays as it is.
    """

    def separate(node: Any) -> Any:
        if not _is_fused(node):
            return node
        layers, start = [], 0
        for part in node.parts:
            layer = _rows(node, start, start + part.size) if len(node.parts) > 1 else node
            layers.append(Shared(layer) if part.units % devices else layer)
            start += part.size
        return layers[0] if len(layers) == 1 else Apart(tuple(layers))

    stop = lambda node: isinstance(node, Apart | Shared) or _is_fused(node)
    return tree if devices == 1 else jax.tree.map(separate, tree, is_leaf=stop)


def together(tree: Tree, concatenate: Callable[..., Any] = jnp.concatenate) -> Tree:
    """Undo `apart`: the model as it is on one device, and as formats know it.

    **Arguments:**

    - `tree`: a model, or a part of one.
    - `concatenate`: concatenates the leaves of layers along an axis, as `jax.numpy.concatenate`.
    """

    def join(node: Any) -> Any:
        if isinstance(node, Shared):
            return node.layer
        if not isinstance(node, Apart):
            return node
        layers = [whole(layer) for layer in node.layers]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if isinstance(weights[0], Int8Matrix):
            parts = [weight.values for weight in weights], [weight.scale for weight in weights]
            weight = Int8Matrix(concatenate(parts[0], axis=-2), concatenate(parts[1], axis=-1))
        else:
            weight = concatenate(weights, axis=-2)
        return _replaced(layers[0], weight, None if biases[0] is None else concatenate(biases, axis=-1))

    return jax.tree.map(join, tree, is_leaf=lambda node: isinstance(node, Apart | Shared))


def whole(layer: Any) -> Any:
    """The layer itself, of one that may be `Shared`."""
    return layer.layer if isinstance(layer, Shared) else layer


def part_of(array: Any, start: int, stop: int, axis: int) -> Any:
    """A part of an array along an axis. Placeholders of arrays have a method `part` for it."""
    if hasattr(array, "part"):
        return array.part(start, stop, axis)
    return jax.lax.slice_in_dim(array, start, stop, axis=axis % array.ndim)


def _is_fused(node: Any) -> bool:
    parts = getattr(node, "parts", ()) if isinstance(node, eqx.Module) else ()
    return isinstance(parts, tuple) and any(isinstance(part, Part) for part in parts)


def _rows(layer: Any, start: int, stop: int) -> Any:
    """The layer of some of the outputs."""
    weight, bias = layer.weight, layer.bias
    if isinstance(weight, Int8Matrix):
        weight = Int8Matrix(part_of(weight.values, start, stop, -2), part_of(weight.scale, start, stop, -1))
    else:
        weight = part_of(weight, start, stop, -2)
    return _replaced(layer, weight, None if bias is None else part_of(bias, start, stop, -1))


def _replaced(layer: Any, weight: Any, bias: Any) -> Any:
    """The layer with another weight and bias."""
    return eqx.tree_at(
        lambda layer: (layer.weight, layer.bias), layer, (weight, bias), is_leaf=lambda node: node is None
    )
