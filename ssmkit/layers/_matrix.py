"""Matrices as they are stored, and products with them: float32 or wider, bfloat16, or 8 bits with a scale per row."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import export
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, Int, Int8

from .._batching import mappable
from .._products import product
from .._sharding import axis_size
from .._types import at_least_float32, check_features, checks_itself


class Int8Matrix(eqx.Module):
    """A matrix of 8-bit integers with one scale per row: entry `(o, i)` is `values[o, i] * scale[o]`.

    As the weight of a `Linear` or an `Embedding` it takes a quarter of the memory of float32. Make it by
    `ssmkit.quantize` or `ssmkit.from_pretrained(..., quantize="int8")`. For a `BlockDiagonalLinear`, and for
    experts, `values` and `scale` have a leading axis of matrices.
    """

    values: Int8[Array, "*blocks out in"]
    scale: Float[Array, "*blocks out"]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix, `(out, in)`, or of all blocks, `(blocks, out, in)`."""
        return self.values.shape

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the dequantised entries, which is that of `scale`."""
        return self.scale.dtype


Matrix: TypeAlias = Float[Array, "out in"] | Int8Matrix

# Up to this many rows at a time, reading the matrix takes longer than multiplying with it.
_FEW_ROWS = 16

# XLA's CPU backend (jax 0.10 and 0.12) makes one task of at most this many bytes of a matrix, for a product with a
# vector.
_TASK = 2 << 20
_PARTS = 4

# The bytes of a tile of a matrix that stays in a core's cache. From 64 KiB to 512 KiB, times differ by less than 1.5.
_TILE = 128 << 10

Tree = TypeVar("Tree")


def look_up(matrix: Matrix, rows: Int[Array, "*axes"]) -> Float[Array, "*axes in"]:
    """Look up rows of the matrix, in its dtype, or in the dtype of its scale."""
    if rows.ndim == 0 and axis_size("model") > 1:  # XLA would gather the whole matrix to look up one row
        return look_up(matrix, rows[None])[0]
    if isinstance(matrix, Int8Matrix):
        return matrix.values[rows].astype(matrix.scale.dtype) * matrix.scale[rows][..., None]
    return matrix[rows]


@checks_itself
def project(matrix: Matrix, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    r"""The product $W x$ in float32 or wider. Every entry of `matrix` is read once, in its stored dtype.

    Values are cast here and nowhere else. For a float32 or float64 matrix, `x` is cast to the dtype of the matrix. On a
    CPU, the product of a large matrix with one vector is written in parts, which threads share evenly. For a narrower
    matrix,

    - on a CPU `x` is written as a sum of numbers as narrow as the matrix, whose products CPUs compute quickly: three
      for bfloat16, which keep float32 precision, and two for 8 bits, which keep 15 bits of the largest entry of `x`;
    - a TPU multiplies 8-bit integers too: up to 16 rows meet an 8-bit matrix as on a CPU;
    - elsewhere `x` is cast to the dtype of a bfloat16 or float16 matrix, and to bfloat16 for an 8-bit matrix.
    """
    check_features(x, matrix.shape[-1])
    if isinstance(matrix, Int8Matrix):
        x = x.astype(at_least_float32(x.dtype))
        on_tpu = _int8_digits if _has_few_rows(x) else _int8_quickly
        products = jax.lax.platform_dependent(matrix.values, x, cpu=_int8_digits, tpu=on_tpu, default=_int8_quickly)
        return products * jnp.broadcast_to(matrix.scale.astype(products.dtype), products.shape)
    if matrix.dtype in (jnp.bfloat16, jnp.float16):
        x = x.astype(jnp.float32)
    if matrix.dtype == jnp.bfloat16:
        return jax.lax.platform_dependent(matrix, x, cpu=_bfloat16_rows, default=_cast)
    if matrix.dtype == jnp.float16:
        return jax.lax.platform_dependent(matrix, x, cpu=_widened, default=_cast)
    if x.ndim == 1 and matrix.size * matrix.dtype.itemsize > _TASK:
        return jax.lax.platform_dependent(matrix, x.astype(matrix.dtype), cpu=_vector_in_parts, default=_cast)
    return _cast(matrix, x)


def one_of(stacked: Tree, index: Int[Array, ""]) -> Tree:
    """One entry along the leading axis of every array of a tree.

    In a loop, XLA's CPU backend (jax 0.10 and 0.12) would convert all of a bfloat16 array to float32 before the loop,
    to take parts of the result. The barrier makes the array depend on the loop.
    """
    stacked, index = jax.lax.optimization_barrier((stacked, index))
    return jax.tree.map(lambda all: jax.lax.dynamic_index_in_dim(all, index, keepdims=False), stacked)


def project_one(
    stacked: Float[Array, "matrices out in"] | Int8Matrix, index: Int[Array, ""], x: Float[Array, "*rows in"]
) -> Float[Array, "*rows out"]:
    """The product with one of several stacked matrices, as `project` of that matrix.

    XLA's CPU backend copies what a product takes out of a larger array. There, for few rows, the matrix is taken in
    tiles that stay in the cache of a core between the copy and the product: memory is read once, and nothing written.
    """
    whole = lambda stacked, index, x: project(one_of(stacked, index), x)
    part = _rows_of_tile(stacked)
    if part == stacked.shape[1] or x.size > _FEW_ROWS * x.shape[-1] or axis_size("model") > 1:
        return whole(stacked, index, x)
    count = stacked.shape[1] // part

    def in_tiles(stacked, index, x):
        tiles = jax.tree.map(lambda all: jnp.reshape(all, (-1, part, *all.shape[2:])), stacked)
        numbers = index * count + jnp.arange(count, dtype=index.dtype)
        products = jax.lax.map(lambda number: project(one_of(tiles, number), x), numbers)
        return jnp.reshape(jnp.moveaxis(products, 0, -2), (*x.shape[:-1], -1))

    return jax.lax.platform_dependent(stacked, index, x, cpu=in_tiles, default=whole)


def _rows_of_tile(stacked: Float[Array, "matrices out in"] | Int8Matrix) -> int:
    """The most rows of a tile of `_TILE` bytes that divide those of a matrix; all rows if tiles would be too small."""
    entries = stacked.values if isinstance(stacked, Int8Matrix) else stacked
    _, out, size = entries.shape
    most = max(1, _TILE // (size * entries.dtype.itemsize))
    rows = max(rows for rows in range(1, min(out, most) + 1) if out % rows == 0)
    return rows if 8 * rows >= min(out, most) else out


def _cast(matrix: Float[Array, "out in"], x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product with operands in the matrix's dtype, accumulated in float32 or wider."""
    return _product(matrix, x.astype(matrix.dtype))


def _widened(matrix: Array, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product with operands in float32 or wider. The narrow forms below equal it up to rounding."""
    x = x.astype(at_least_float32(x.dtype))
    return _product(matrix.astype(x.dtype), x)


def _differentiated_as_widened(form: Callable[[Any, Any], Any]) -> jax.custom_jvp[Any]:
    """Give another form of the product the derivatives of `_widened`: digits have no derivatives, or rounded ones."""
    form = jax.custom_jvp(form)

    def derivative(primals, tangents):
        (matrix, x), (d_matrix, d_x) = primals, tangents
        products = form(matrix, x)
        d_products = jnp.zeros_like(products)
        if not isinstance(d_x, SymbolicZero):
            d_products += _widened(matrix, d_x)
        if not isinstance(d_matrix, SymbolicZero) and jnp.issubdtype(d_matrix.dtype, jnp.floating):
            d_products += _widened(d_matrix, x)
        return products, d_products

    form.defjvp(derivative, symbolic_zeros=True)
    return form


def _in_parts(matrix: Float[Array, "out in"], x: Float[Array, " in"]) -> Float[Array, " out"]:
    """The product with one vector, in as many parts as divide the rows of the matrix.

    XLA's CPU backend would make three tasks of 4.7 MB, for example, and one of two threads would compute two of them.
    Every part has tasks of its own, so that the number of tasks is even. `jax.vmap` of the parts would be slow, and
    uses `_cast` instead.
    """
    parts = math.gcd(_PARTS, matrix.shape[0])
    matrices = jnp.reshape(matrix, (parts, -1, matrix.shape[1]))
    return jnp.reshape(product("poi,pi->po", matrices, jnp.broadcast_to(x, (parts, *x.shape))), -1)


_vector_in_parts = _differentiated_as_widened(mappable(_in_parts, _cast))


def _bfloat16_digits(matrix: Array, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product with `x` as an exact sum of three bfloat16 numbers. (XLA removes casts to bfloat16 and back.)"""
    rest, digits = x, []
    for _ in range(3):
        digits.append(jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7))
        rest = rest - digits[-1]
    products = _product(matrix, jnp.stack(digits, axis=-2).astype(jnp.bfloat16))
    return _sum_of_digits(products, (1.0, 1.0, 1.0))


def _by_rows(matrix: Array, x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product by digits if rows are few, or if a program is exported for any number of rows; else `_widened`."""
    return (_bfloat16_digits if _has_few_rows(x) else _widened)(matrix, x)


def _has_few_rows(x: Float[Array, "*axes in"]) -> bool:
    return export.is_symbolic_dim(x.size) or x.size <= _FEW_ROWS * x.shape[-1]


def _stacked(in_axes: tuple[int | None, int | None], matrices: Array, x: Array) -> Array:
    """The products of stacked matrices, which `jax.vmap` maps over. The rows of each matrix are counted separately."""
    x = x if in_axes[1] == 0 else jnp.broadcast_to(x, (matrices.shape[0], *x.shape))
    return _stacked_rows(matrices, x)


_stacked_rows = mappable(
    lambda matrices, x: jax.vmap(_by_rows)(matrices, x),
    lambda matrices, x: jax.vmap(_by_rows, in_axes=(0, 1), out_axes=1)(matrices, x),
)

# All rows are counted, including those that `jax.vmap` adds.
_bfloat16_rows = _differentiated_as_widened(mappable(_by_rows, _by_rows, over_shared=_stacked))


@_differentiated_as_widened
def _int8_digits(values: Int8[Array, "out in"], x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product with `x` as fixed-point numbers of two base-254 digits: 15 bits, relative to its largest entry."""
    largest = _largest(x)
    tamed = jnp.where(largest > 2.0**64, jnp.full_like(largest, 2.0**-64), jnp.ones_like(largest))  # no overflow below
    x, largest = x * tamed, largest * tamed
    unit = jnp.where(largest == 0, jnp.ones_like(largest), largest)
    scaled = 127 * (x / unit)
    first = jnp.round(scaled)
    digits = jnp.stack((first, jnp.round(254 * (scaled - first))), axis=-2)
    products = _product(values, digits.astype(jnp.int8)).astype(x.dtype)
    unit = jnp.where(jnp.isfinite(largest), unit, jnp.full_like(unit, jnp.nan))  # integers have no NaN
    return unit * _sum_of_digits(products, (1 / 127, 1 / 127 / 254)) / tamed


def _largest(x: Float[Array, "*axes in"]) -> Float[Array, "*axes 1"]:
    """The largest magnitude, or NaN if there is one, which XLA's maximum of floating-point numbers may lose.

    As integers, the bits of magnitudes are in the order of the numbers, and those of NaN are the largest.
    """
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), jnp.int32 if x.dtype == jnp.float32 else jnp.int64)
    return jax.lax.bitcast_convert_type(jnp.max(bits, axis=-1, keepdims=True), x.dtype)


def _int8_quickly(values: Int8[Array, "out in"], x: Float[Array, "*axes in"]) -> Float[Array, "*axes out"]:
    """The product in bfloat16, which holds every 8-bit integer, and with `x` cast to it."""
    return _cast(values.astype(jnp.bfloat16), x).astype(x.dtype)


def _sum_of_digits(products: Array, places: tuple[float, ...]) -> Array:
    """The sum of the products of the digits, written without a reduction.

    XLA's CPU backend (jax 0.10 and 0.12) passes such a reduction over products of a large matrix to a library. Mapped
    over rows, its result is wrong.
    """
    digits = (jax.lax.index_in_dim(products, i, axis=-2, keepdims=False) for i in range(len(places)))
    return sum(place * digit for place, digit in zip(places, digits, strict=True))  # pyright: ignore[reportReturnType]


def _product(matrix: Array, x: Array) -> Array:
    return product("...i,oi->...o", x, matrix)
