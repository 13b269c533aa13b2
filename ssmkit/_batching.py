"""Functions that say themselves what `jax.vmap` makes of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def mappable(
    single: Callable[..., Any], many: Callable[..., Any], *, over_shared: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`single`, which `jax.vmap` turns into `many`. Mapped twice or more often, rows of rows are rows.

    Reverse-mode differentiation needs a `jax.custom_jvp` around it.

    **Arguments:**

    - `single`: takes what all rows share, weights for example, and then what a row has of its own.
    - `many`: the same for rows along the first axis of all but the shared argument, and of the results.
    - `over_shared`: is called in their place, with `in_axes` and the arguments, where the shared argument is mapped
        too; by default `single` is mapped as any function is.
    """
    one, rows = jax.custom_batching.custom_vmap(single), jax.custom_batching.custom_vmap(many)

    def in_axes(is_mapped: Any) -> Any:
        return jax.tree.map(lambda mapped: 0 if mapped else None, tuple(is_mapped))

    def mapped_as_any(function: Callable[..., Any], is_mapped: Any, arguments: Any) -> Any:
        if over_shared is not None:
            return over_shared(in_axes(is_mapped), *arguments)
        return jax.vmap(function, in_axes(is_mapped))(*arguments)

    def along_first(size: Any, is_mapped: Any, arguments: Any) -> Any:
        # `size` is an integer, or stands for one in a program exported for any number of rows.
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
