"""The algorithm of all recurrences, written once. A subclass defines the effect of one token."""

import abc
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Generic

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, DTypeLike, Inexact, PyTree

from .. import kernels
from .._extent import CheckedExtent, Extent, extent_of
from .._final import refuse_overrides
from .._sharding import sharded_by_xla
from .._slices import Exchange, in_slices
from .._types import State, StateLike, Valid, check_valid, checks_itself, shown, whole
from ..kernels._coefficients import Coefficients
from ._checks import ADD_TIME, DROP_TIME, check_state, dtype_name, is_wide
from ._operator import AbstractSequenceOperator, Input


class DiagonalChunkedRecurrence(AbstractSequenceOperator[Input, Inexact[Array, "..."], State], Generic[Input]):
    r"""A diagonal linear recurrence, defined by the coefficients that one token contributes.

    $$S_t = e^{a_t} \odot S_{t-1} + k_t v_t^\top, \qquad y_t = S_t^\top q_t$$

    A subclass names its `state_shape` and writes `coefficients`. The chunked scan for training and prefill, the O(1)
    step for decoding, gradients, padding and batching follow from them. The recurrence must meet three conditions: the
    transition is diagonal; coefficients depend on the inputs, never on the state; control flow is static.

        class Decay(ssmkit.DiagonalChunkedRecurrence[Array]):
            rate: Array  # (heads,)
            state_shape: tuple[int, int, int] = eqx.field(static=True)

            def coefficients(self, x):  # x: (heads, value), one token
                ones = jnp.ones((1, self.state_shape[1]), x.dtype)
                decay = jax.nn.log_sigmoid(self.rate)[:, None]
                return ssmkit.Coefficients(log_decay=decay, write=ones, value=x, read=ones)

    **Arguments:**

    - `state_shape`: `(heads, key, value)`, static.
    - `chunk_size`: the largest number of tokens per chunk. With `None`, the default, the backend chooses. Results do
        not depend on it.
    - `state_dtype`: float32, or `jnp.complex64` for a recurrence with complex coefficients.

    All methods except `coefficients` are final. The laws are those of `ssmkit.AbstractSequenceOperator`, and results do
    not depend on `chunk_size`.
    """

    state_shape: eqx.AbstractVar[tuple[int, int, int]]
    chunk_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    state_dtype: DTypeLike = eqx.field(static=True, default=jnp.float32, kw_only=True)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        refuse_overrides(
            cls,
            DiagonalChunkedRecurrence,
            "what is computed over many tokens and over one must agree. Write `coefficients`.",
        )

    def __check_init__(self):
        name = type(self).__name__
        for field in dataclasses.fields(self):
            if field.name in ("state_shape", "chunk_size", "state_dtype") and not field.metadata.get("static", False):
                raise ValueError(
                    f"{name}: `{field.name}` must be static, or `jax.jit` takes it for data: declare it as "
                    f"`{field.name}: ... = eqx.field(static=True)`."
                )
        shape = self.state_shape
        sizes = [whole(size) or 0 for size in shape] if isinstance(shape, tuple) else []
        if len(sizes) != 3 or min(sizes) < 1:
            raise ValueError(
                f"{name}: `state_shape` must be a tuple of three integers, at least 1, (heads, key, value), got "
                f"{shown(shape)}."
            )
        if self.chunk_size is not None and (whole(self.chunk_size) or 0) < 1:
            raise ValueError(
                f"{name}: `chunk_size` must be an integer, at least 1, or None, got {shown(self.chunk_size)}."
            )
        if not is_wide(self.state_dtype):
            raise ValueError(
                f"{name}: `state_dtype` must be float32 or complex64 (or wider), got {dtype_name(self.state_dtype)}: "
                "a state adds up many small numbers."
            )
        for attribute in ("state_shape", "chunk_size", "state_dtype"):
            for field in _traced_sources(self, attribute):
                raise ValueError(
                    f"{name}: `{attribute}` depends on `{field}`, which must be static, or `jax.jit` takes it for "
                    f"data: declare it as `{field}: ... = eqx.field(static=True)`."
                )

    @abc.abstractmethod
    def coefficients(self, inputs: Input, /) -> Coefficients:
        """The effect of one token on the state. The method sees one token only, so it is causal by construction.

        **Arguments:**

        - `inputs`: any pytree of arrays of one token, without a `time` or `batch` axis.

        **Returns:** `ssmkit.Coefficients` that fit `state_shape`.
        """

    def init_state(self) -> State:
        """Zeros of shape `state_shape` and dtype `state_dtype`, whatever the dtype of the inputs."""
        return jnp.zeros(self.state_shape, self.state_dtype)

    @sharded_by_xla
    @checks_itself
    def chunk_scan(
        self, inputs: Input, state: StateLike, extent: Extent = Extent()
    ) -> tuple[Inexact[Array, "time heads *reads value"], State]:
        """Run many tokens, in parallel within chunks. Arguments are those of `AbstractSequenceOperator.chunk_scan`.

        **Raises:** `ValueError` when the coefficients or the state do not fit `state_shape`, or `inputs` have no time
        axis, naming this class.
        """
        state = check_state(self, state, self.state_shape, axes="(heads, key, value)", kind=jnp.inexact)
        time = _leading_axis(type(self).__name__, inputs)
        return in_slices(_scan, self, inputs, state, extent_of(extent, time))

    @sharded_by_xla
    @checks_itself
    def step(
        self, inputs: Input, state: StateLike, *, valid: Valid | None = None
    ) -> tuple[Inexact[Array, "heads *reads value"], State]:
        """Run one token. Arguments are those of `AbstractSequenceOperator.step`.

        **Raises:** as `chunk_scan`.
        """
        state = check_state(self, state, self.state_shape, axes="(heads, key, value)", kind=jnp.inexact)
        try:
            coefficients = self._checked(inputs)
        except Exception as error:
            _explain(error, jax.vmap(self._checked), inputs, f"{type(self).__name__}.step", _MANY)
            raise
        if valid is not None:
            coefficients = coefficients.where(check_valid(valid))
        return kernels.step(coefficients, state)

    @sharded_by_xla
    @checks_itself
    def states(
        self, inputs: Input, state: StateLike, extent: Extent = Extent()
    ) -> Inexact[Array, "time heads key value"]:
        """The state after every token, for research. It is computed token by token and takes `time` times the memory.

        Arguments are those of `chunk_scan`. The last state is the one that `chunk_scan` returns.
        """
        state = check_state(self, state, self.state_shape, axes="(heads, key, value)", kind=jnp.inexact)
        coefficients, starts = self._that_count(inputs, extent)
        return kernels.states(coefficients, state, starts=starts)

    @sharded_by_xla
    @checks_itself
    def matrix(self, inputs: Input, extent: Extent = Extent()) -> Inexact[Array, "heads time ..."]:
        r"""The matrix $M$ of each head with $y_t = \sum_{s \le t} M_{ts} v_s$ from an empty state, for research.

        Values $v$ are those of `coefficients`. The matrix corresponds to the scores of attention: `time` squared
        numbers.

        **Arguments:**

        - `inputs`: the inputs of `time` tokens, as for `chunk_scan`.
        - `extent`: how many tokens count, and where new sequences start. With starts, $M$ is block-diagonal.

        **Returns:** `(heads, time, time)`, as `ssmkit.kernels.matrix`; rows and columns of tokens that do not count
        are zero.
        """
        coefficients, starts = self._that_count(inputs, extent)
        return kernels.matrix(coefficients, starts=starts)

    @checks_itself
    def _that_count(self, inputs: Input, extent: Extent) -> tuple[Coefficients, Bool[Array, " time"] | None]:
        """The coefficients of many tokens, with the identity step for tokens that do not count, and the starts."""
        time = _leading_axis(type(self).__name__, inputs)
        checked = extent_of(extent, time)
        coefficients, valid = self._checked_all(inputs), checked.valid(time)
        return coefficients if valid is None else jax.vmap(Coefficients.where)(coefficients, valid), checked.starts

    def _checked_all(self, inputs: Input) -> Coefficients:
        """The checked coefficients of many tokens."""
        try:
            return jax.vmap(self._checked)(inputs)
        except Exception as error:
            _explain(error, self._checked, inputs, f"{type(self).__name__}.chunk_scan", _ONE)
            raise

    def _checked(self, inputs: Input) -> Coefficients:
        """The coefficients of one token, checked against `state_shape`."""
        name = type(self).__name__
        try:
            coefficients = self.coefficients(inputs)
        except ValueError as error:
            raise ValueError(f"{name}.coefficients: {error}") from error
        except Exception as error:
            shapes = jax.tree.map(jnp.shape, inputs)
            error.add_note(f"In {name}.coefficients, whose inputs are those of one token, of shapes {shapes}.")
            raise
        if not isinstance(coefficients, Coefficients):
            raise TypeError(
                f"{name}.coefficients must return `ssmkit.Coefficients`, got {type(coefficients).__name__}."
            )
        dtypes = [leaf.dtype for leaf in jax.tree.leaves(coefficients)]
        complexes = [jnp.issubdtype(dtype, jnp.complexfloating) for dtype in (*dtypes, self.state_dtype)]
        if any(complexes) and not complexes[-1]:
            raise ValueError(
                f"{name}: the coefficients are complex, so `state_dtype` must be complex64, got "
                f"{jnp.dtype(self.state_dtype)}."
            )
        fields = zip(("heads", "key", "value"), ("value", "write", "value"), (0, -1, -1), self.state_shape, strict=True)
        for axis_name, field, last, expected in fields:
            got = getattr(coefficients, field).shape
            axis = last % len(got)
            if got[axis] != expected:
                raise ValueError(
                    f"{name}.coefficients: axis {axis} ({axis_name}) of `{field}` must be {expected}, as "
                    f"`state_shape` {self.state_shape} says, got {got[axis]} in shape {got}."
                )
        return coefficients


def _scan(
    recurrence: DiagonalChunkedRecurrence[Any], inputs: PyTree, state: Array, extent: CheckedExtent, exchange: Exchange
) -> tuple[Array, Array]:
    """`chunk_scan` over a slice of the tokens."""
    length, starts = extent
    coefficients, most = recurrence._checked_all, recurrence.chunk_size
    return kernels.chunk_scan_of(
        coefficients, inputs, state, length=length, starts=starts, most=most, exchange=exchange
    )


_ONE = f"`inputs` are those of one token, of shapes {{}}: {ADD_TIME}."
_MANY = f"`inputs` are those of many tokens, of shapes {{}}: {DROP_TIME}."


def _explain(error: Exception, other: Callable[[Any], Any], inputs: PyTree, name: str, remedy: str) -> None:
    """Explain inputs of many tokens that fit one token, or the reverse: their time axis is wrong.

    **Raises:** `ValueError` with this explanation, if it applies.
    """
    try:
        jax.eval_shape(other, inputs)
    except Exception:
        return
    raise ValueError(f"{name}: {remedy.format(jax.tree.map(jnp.shape, inputs))}") from error


def _traced_sources(module: eqx.Module, attribute: str) -> Iterator[str]:
    """The leaves, except arrays, on whose values an attribute depends. An array's shape is known even when traced."""
    given = getattr(module, attribute)
    leaves, structure = jax.tree_util.tree_flatten_with_path(module)
    values = [leaf for _, leaf in leaves]
    for i, (path, leaf) in enumerate(leaves):
        if not isinstance(leaf, jax.Array | np.ndarray):
            changed = jax.tree_util.tree_unflatten(structure, [*values[:i], object(), *values[i + 1 :]])
            try:
                same = bool(getattr(changed, attribute) == given)
            except Exception:
                same = False
            if not same:
                yield jax.tree_util.keystr(path, simple=True, separator=".")


def _leading_axis(name: str, inputs: PyTree) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
        raise ValueError(
            f"{name}.chunk_scan: every array of `inputs` must have the same leading axis (time), got shapes {shapes}."
        )
    return sizes.pop()[0]
