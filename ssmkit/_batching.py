"""Functions that define their own behaviour under `jax.vmap`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mappable(
    single: Callable[..., Any], many: Callable[..., Any], *, over_shared: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """The function `single`, with `jax.vmap` of it replaced by `many`. Nested maps flatten their axes into one of rows.

    Reverse-mode differentiation needs a `jax.custom_jvp` around the result.

    **Arguments:**

    - `single`: its first argument is shared by all rows, for example weights; the others belong to one row.
    - `many`: the same function for rows, along the first axis of every unshared argument and of the results.
    - `over_shared`: called instead, with `in_axes` and the arguments, if the shared argument is mapped too. By default
        `single` is then mapped like any function.
    """
    one, rows = jax.custom_batching.custom_vmap(single), jax.custom_batching.custom_vmap(many)

    def in_axes(is_mapped: Any) -> Any:
        return jax.tree.map(lambda mapped: 0 if mapped else None, tuple(is_mapped))

    def mapped_as_any(function: Callable[..., Any], is_mapped: Any, arguments: Any) -> Any:
        if over_shared is not None:
            return over_shared(in_axes(is_mapped), *arguments)
        return jax.vmap(function, in_axes(is_mapped))(*arguments)

    def along_first(size: Any, is_mapped: Any, arguments: Any) -> Any:
        # `size` is an integer, or a symbolic size in a program that is exported for any number of rows.
        def spread(x: Any, mapped: bool) -> Any:
            if not hasattr(x, "dtype"):  # a constant, which comes as a Python number: a truth value or a length
                x = jnp.asarray(x, bool if isinstance(x, bool) else jnp.int32)
            return x if mapped else jnp.broadcast_to(x, (size, *x.shape))

        return jax.tree.map(spread, tuple(arguments), tuple(is_mapped[1:]))

    @one.def_vmap
    def _(size, is_mapped, shared, *arguments):
        if any(jax.tree.leaves(is_mapped[0])):
            out = mapped_as_any(single, is_mapped, (shared, *arguments))
        else:
            out = rows(shared, *along_first(size, is_mapped, arguments))
        return out, jax.tree.map(lambda _: True, out)

    @rows.def_vmap
    def _(size, is_mapped, shared, *arguments):
        if any(jax.tree.leaves(is_mapped[0])):
            out = mapped_as_any(many, is_mapped, (shared, *arguments))
        else:
            arguments = along_first(size, is_mapped, arguments)
            out = rows(shared, *jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), arguments))
            out = jax.tree.map(lambda x: jnp.reshape(x, (size, -1, *x.shape[1:])), out)
        return out, jax.tree.map(lambda _: True, out)

    return one
