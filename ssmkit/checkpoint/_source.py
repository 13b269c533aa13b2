"""`Source`: the name of a tensor, and reversible steps that turn it into an array of a model, as data."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import TypeAlias

import numpy as np

from ._errors import CheckpointError


Shape: TypeAlias = tuple[int, ...]

_MOST = 1 << 16  # tensors of one array


@dataclasses.dataclass(frozen=True, slots=True)
class Reshape:
    """A step between two shapes with the same elements in order. The array has its own shape, and the file another."""

    stored: Shape
    """The shape in the file. One size may be -1; it then follows from the shape of the array."""

    def before(self, shape: Shape) -> Shape:
        """The shape that this step is given, from the one that it gives."""
        known = math.prod(size for size in self.stored if size != -1)
        free = math.prod(shape) // max(known, 1)
        before = tuple(free if size == -1 else size for size in self.stored)
        _require(math.prod(before) == math.prod(shape), self, shape)
        return before

    def forwards(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """Convert from the file's form to the model's."""
        return values.reshape(shape)

    def backwards(self, values: np.ndarray) -> np.ndarray:
        """Convert from the model's form to the file's."""
        return values.reshape(self.before(values.shape))


@dataclasses.dataclass(frozen=True, slots=True)
class Transpose:
    """A step that reorders the axes."""

    axes: Shape
    """For each axis of the model's form, the corresponding axis of the file's form."""

    def before(self, shape: Shape) -> Shape:
        """The shape that this step is given, from the one that it gives."""
        _require(sorted(self.axes) == list(range(len(shape))), self, shape)
        return tuple(shape[axis] for axis in self._inverse())

    def forwards(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """Convert from the file's form to the model's."""
        return values.transpose(self.axes)

    def backwards(self, values: np.ndarray) -> np.ndarray:
        """Convert from the model's form to the file's."""
        return values.transpose(self._inverse())

    def _inverse(self) -> Shape:
        return tuple(self.axes.index(axis) for axis in range(len(self.axes)))


@dataclasses.dataclass(frozen=True, slots=True)
class Slice:
    """A step that takes a part of a fused tensor along one axis, such as a query projection from `qkv`.

    The other parts must be other arrays of the model: a tensor with a part that belongs to no array is refused.
    """

    start: int
    """The index at which the part begins; its length follows from the shape of the array."""
    size: int
    """The length of the fused tensor."""
    axis: int = 0

    def before(self, shape: Shape) -> Shape:
        """The shape that this step is given, from the one that it gives."""
        _require(0 <= self.axis < len(shape), self, shape)
        _require(0 <= self.start and self.start + shape[self.axis] <= self.size, self, shape)
        return (*shape[: self.axis], self.size, *shape[self.axis + 1 :])

    def forwards(self, values: np.ndarray, shape: Shape) -> np.ndarray:
        """The part, as a view of the whole."""
        part = slice(self.start, self.start + shape[self.axis])
        return values[(slice(None),) * self.axis + (part,)]


@dataclasses.dataclass(frozen=True, slots=True)
class Stack:
    """A step that stacks tensors, which are numbered from 0, along a new first axis, such as experts.

    The number replaces the last `{}` in the tensor's name.
    """

    count: int

    def before(self, shape: Shape) -> Shape:
        """The shape of each entry, from that of the stack."""
        _require(shape[:1] == (self.count,), self, shape)
        return shape[1:]


Step: TypeAlias = Reshape | Transpose | Slice | Stack


def _require(holds: bool, step: Step, shape: Shape) -> None:
    if not holds:
        raise CheckpointError(f"The format gives no array of shape {shape}: its step {step} does not fit.")


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """The place of a model's array in a file.

    `write` undoes `read`: a written array is read back exactly.
    """

    name: str
    """The tensor's name, as it is written; with one `{}` for each `Stack`."""
    steps: tuple[Step, ...] = ()
    """The steps from the tensor to the model's array, in order."""

    def __post_init__(self):
        """Check the name and the steps.

        **Raises:** `ValueError` when they do not fit together.
        """
        stacks = [step.count for step in self.steps if isinstance(step, Stack)]
        if stacks and self.name.count("{}") != len(stacks):
            raise ValueError(f"`name` must hold one {{}} for each of {len(stacks)} stacks, got {self.name!r}.")
        if min(stacks, default=1) < 1 or math.prod(stacks) > _MOST:
            raise ValueError(f"`steps` must stack between 1 and {_MOST} tensors, got {stacks}.")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all tensors that hold a part of the array."""
        if not self.steps:
            return (self.name,)
        *_, last = self.steps
        parts = map(self._entry, range(last.count)) if isinstance(last, Stack) else [self._without_last()]
        return tuple(name for part in parts for name in part.names)

    def tensor_shape(self, shape: Shape) -> Shape:
        """The shape of each tensor.

        **Arguments:**

        - `shape`: the shape of the array.

        **Raises:** `CheckpointError` when no tensor could give an array of this shape.
        """
        for step in reversed(self.steps):
            shape = step.before(shape)
        return shape

    def dtype(self, tensor: Callable[[str], np.dtype]) -> np.dtype:
        """The dtype of the array that `read` returns.

        **Arguments:**

        - `tensor`: returns the dtype of the tensor of a name.
        """
        return functools.reduce(_common, map(tensor, self.names))

    def read(self, tensor: Callable[[str], np.ndarray], shape: Shape) -> np.ndarray:
        """Read the array. It is a view of the tensor if the steps allow this, so that only the needed part is read.

        **Arguments:**

        - `tensor`: returns the tensor of a name, of shape `tensor_shape(shape)`.
        - `shape`: the shape of the array.

        **Returns:** the array, in the dtype of the tensors. If these differ, it has the dtype that holds them all.
        """
        if not self.steps:
            return tensor(self.name)
        *_, last = self.steps
        before = last.before(shape)
        if isinstance(last, Stack):
            return _stacked([self._entry(i).read(tensor, before) for i in range(last.count)])
        return last.forwards(self._without_last().read(tensor, before), shape)

    def write(self, values: np.ndarray, tensors: MutableMapping[str, np.ndarray]) -> None:
        """Write the array into its tensors. The parts of other arrays stay there.

        **Arguments:**

        - `values`: the array.
        - `tensors`: tensors by name; missing tensors are added. Without a `Slice`, they are views of `values`.
        """
        if not self.steps:
            tensors[self.name] = values
            return
        *_, last = self.steps
        if isinstance(last, Stack):
            last.before(values.shape)
            for i, entry in enumerate(values):
                self._entry(i).write(entry, tensors)
        elif isinstance(last, Slice):
            self._without_last().write(self._filled(last, values, tensors), tensors)
        else:
            self._without_last().write(last.backwards(values), tensors)

    def _filled(self, last: Slice, values: np.ndarray, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
        """The whole tensor of which `last` takes a part, with this part written and the rest unchanged."""
        shape = last.before(values.shape)
        if all(name in tensors for name in self.names):
            whole = self._without_last().read(tensors.__getitem__, shape)
            whole = whole.astype(_common(whole.dtype, values.dtype), copy=False)
        else:
            whole = np.zeros(shape, values.dtype)
        last.forwards(whole, values.shape)[...] = values
        return whole

    def _without_last(self) -> "Source":
        return Source(self.name, self.steps[:-1])

    def _entry(self, index: int) -> "Source":
        """The source of one entry of the stack that the last step makes."""
        before, after = self.name.rsplit("{}", 1)
        return Source(f"{before}{index}{after}", self.steps[:-1])

    def __str__(self) -> str:
        """The names of the tensors, for messages."""
        first, *others = self.names
        return f"`{first}` to `{others[-1]}`" if others else f"`{first}`"


def _common(a: np.dtype, b: np.dtype) -> np.dtype:
    """The narrowest dtype that holds the numbers of both dtypes."""
    import jax.numpy as jnp

    return a if a == b else np.dtype(jnp.promote_types(a, b))


def _stacked(entries: list[np.ndarray]) -> np.ndarray:
    """The entries along a new first axis."""
    dtype = entries[0].dtype
    for entry in entries[1:]:
        dtype = _common(dtype, entry.dtype)
    stacked = np.empty((len(entries), *entries[0].shape), dtype)
    for i, entry in enumerate(entries):
        stacked[i] = entry
    return stacked
