"""Detection of coefficients that are the same for every token, as in a time-invariant system."""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from ._coefficients import Coefficients


def constant_fields(coefficients: Callable[[Any], Coefficients], inputs: PyTree) -> tuple[Coefficients, list[str]]:
    """The form of the coefficients, and the names of those that do not depend on the inputs.

    A constant field need not be repeated for every token. Its gradients are added up token by token; on a CPU, the sum
    over a repeated field is ten times slower. `value` never counts as constant, because it gives the number of tokens.

    **Arguments:**

    - `coefficients`: a function of inputs with a leading `time` axis.
    - `inputs`: a pytree of arrays, or of their shapes and dtypes.

    **Returns:** `coefficients(inputs)` as shapes and dtypes, and the names of its constant fields.
    """
    program, form = jax.make_jaxpr(lambda inputs: coefficients(inputs), return_shape=True)(inputs)
    depends = set(map(id, program.jaxpr.invars))
    for equation in program.jaxpr.eqns:
        if any(id(variable) in depends for variable in equation.invars):
            depends.update(map(id, equation.outvars))
    varies = jax.tree.unflatten(
        jax.tree.structure(form), [id(variable) in depends for variable in program.jaxpr.outvars]
    )
    names = ("log_decay", "write", "read", "bonus")
    return form, [name for name in names if getattr(varies, name) is False]
