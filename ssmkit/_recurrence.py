"""The family's algorithm, written once: a subclass says what one token does, everything else follows."""

import abc
from typing import Generic

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Inexact, PyTree

from . import kernels
from ._coefficients import Coefficients
from ._operator import AbstractSequenceOperator, Input
from ._types import Length, State, Valid, check_length


class DiagonalChunkedRecurrence(AbstractSequenceOperator[Input, Inexact[Array, "..."], State], Generic[Input]):
    r"""A diagonal linear recurrence, defined by the coefficients that one token contributes.

    $$S_t = e^{a_t} \odot S_{t-1} + k_t v_t^\top, \qquad y_t = S_t^\top q_t$$

    A subclass names its `state_shape` and writes `coefficients`; the chunked scan for training and prefill, the O(1)
    step for decoding, gradients, padding and batching follow. The recurrence must fit three conditions: the transition
    is diagonal; coefficients depend on the inputs, never on the state; control flow is static.

        class Decay(ssmkit.DiagonalChunkedRecurrence[Array]):
            rate: Array  # (heads,)
            state_shape: tuple[int, int, int] = eqx.field(static=True)

            def coefficients(self, x):  # x: (heads, value), one token
                ones = jnp.ones((1, self.state_shape[1]), x.dtype)
                decay = jax.nn.log_sigmoid(self.rate)[:, None]
                return ssmkit.Coefficients(log_decay=decay, write=ones, value=x, read=ones)

    **Arguments:**

    - `state_shape`: `(heads, key, value)`, static.
    - `chunk_size`: the most tokens a chunk may hold. `None`, the default, leaves it to the backend. Results do not
        depend on it.
    - `state_dtype`: float32, or `jnp.complex64` for a recurrence with complex coefficients.

    `chunk_scan`, `step` and `init_state` are final. Laws as `ssmkit.AbstractSequenceOperator`, and results do not
    depend on `chunk_size`.
    """

    state_shape: eqx.AbstractVar[tuple[int, int, int]]
    chunk_size: int | None = eqx.field(static=True, default=None, kw_only=True)
    state_dtype: DTypeLike = eqx.field(static=True, default=jnp.float32, kw_only=True)

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        before = cls.__mro__[: cls.__mro__.index(DiagonalChunkedRecurrence)]
        for name in ("init_state", "chunk_scan", "step"):
            if any(name in vars(base) for base in before):
                raise TypeError(
                    f"{cls.__name__}.{name} overrides `DiagonalChunkedRecurrence.{name}`, which is final: what is "
                    "computed over many tokens and over one must agree. Write `coefficients`."
                )

    def __check_init__(self):
        dtype = jnp.dtype(self.state_dtype)
        if not jnp.issubdtype(dtype, jnp.inexact) or jnp.finfo(dtype).bits < 32:
            raise ValueError(
                f"{type(self).__name__}: `state_dtype` must be float32 or complex64 (or wider), got {dtype}: a state "
                "adds up many small numbers."
            )

    @abc.abstractmethod
    def coefficients(self, inputs: Input, /) -> Coefficients:
        """What one token does to the state. It sees one token only, hence is causal by construction.

        **Arguments:**

        - `inputs`: any pytree of arrays, of one token, no `time` or `batch` axis.

        **Returns:** `ssmkit.Coefficients` that fit `state_shape`.
        """

    def init_state(self) -> State:
        """Zeros of shape `state_shape` and dtype `state_dtype`, whatever the dtype of the inputs."""
        return jnp.zeros(self.state_shape, self.state_dtype)

    def chunk_scan(
        self, inputs: Input, state: State, *, length: Length | None = None
    ) -> tuple[Inexact[Array, "time heads *reads value"], State]:
        """Many tokens, in parallel within chunks. Arguments as `AbstractSequenceOperator.chunk_scan`.

        **Raises:** `ValueError` when the coefficients or the state do not fit `state_shape`, naming this class.
        """
        self._check_state(state)
        time = _leading_axis(type(self).__name__, inputs)
        if length is not None:
            length = check_length(length, time)
        return kernels.chunk_scan_of(jax.vmap(self._checked), inputs, state, length=length, most=self.chunk_size)

    def step(
        self, inputs: Input, state: State, *, valid: Valid | None = None
    ) -> tuple[Inexact[Array, "heads *reads value"], State]:
        """One token. Arguments as `AbstractSequenceOperator.step`.

        **Raises:** as `chunk_scan`.
        """
        self._check_state(state)
        coefficients = self._checked(inputs)
        if valid is not None:
            coefficients = coefficients.where(valid)
        return kernels.step(coefficients, state)

    def _checked(self, inputs: Input) -> Coefficients:
        name = type(self).__name__
        try:
            coefficients = self.coefficients(inputs)
        except ValueError as error:
            raise ValueError(f"{name}.coefficients: {error}") from error
        except TypeError as error:
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

    def _check_state(self, state: State) -> None:
        if not isinstance(state, jax.Array) or not jnp.issubdtype(state.dtype, jnp.inexact):
            got = getattr(state, "dtype", type(state).__name__)
            raise ValueError(
                f"{type(self).__name__}: `state` must be a floating-point or complex JAX array, got {got}. Start from "
                "`init_state()`."
            )
        if tuple(state.shape) != tuple(self.state_shape):
            raise ValueError(
                f"{type(self).__name__}: `state` must have shape (heads, key, value) = {self.state_shape}, got "
                f"{state.shape}. Start from `init_state()`."
            )


def _leading_axis(name: str, inputs: PyTree) -> int:
    sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(inputs)}
    if len(sizes) != 1 or sizes == {()}:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
        raise ValueError(
            f"{name}.chunk_scan: every array of `inputs` must have the same leading axis (time), got shapes {shapes}."
        )
    return sizes.pop()[0]
