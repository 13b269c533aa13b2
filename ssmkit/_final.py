"""What an abstract class has written once, and its subclasses do not write again."""

import types

import equinox as eqx

from ._types import checks_itself


@checks_itself
def refuse_overrides(cls: type, owner: type, reason: str) -> None:
    """For `__init_subclass__` of an abstract class all of whose methods are final, but for the abstract ones.

    **Arguments:**

    - `cls`: the subclass that is being made.
    - `owner`: the abstract class. What its own bases have written is final too.
    - `reason`: why that is so, and what to write instead; the message ends with it.

    **Raises:** `TypeError` naming the subclass, the method and the class that it belongs to.
    """
    bases = [base for base in owner.__mro__ if issubclass(base, eqx.Module) and base is not eqx.Module]
    finals = {name: base.__name__ for base in reversed(bases) for name in vars(base) if is_final(base, name)}
    for below in cls.__mro__[: cls.__mro__.index(owner)]:
        for name in (*vars(below), *vars(below).get("__annotations__", {})):
            if name in finals:
                raise TypeError(f"{cls.__name__}.{name} overrides `{finals[name]}.{name}`, which is final: {reason}")


def is_final(cls: type, name: str) -> bool:
    """Whether a class has written this method, and not for Python's own use, as `__init__` is."""
    method = vars(cls).get(name)
    if not isinstance(method, types.FunctionType | property) or (name.startswith("__") and name != "__call__"):
        return False
    return not getattr(method, "__isabstractmethod__", False)
