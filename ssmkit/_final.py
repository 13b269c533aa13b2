"""Final methods, which an abstract class writes once, and hooks: the few methods that its subclasses may override."""

import types
from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx

from ._types import checks_itself


_HOOK = "__ssmkit_hook__"

Method = TypeVar("Method", bound=Callable[..., Any])


def hook(method: Method) -> Method:
    """Mark a method of an abstract class that subclasses may override, although it has a default."""
    setattr(method, _HOOK, True)
    return method


@checks_itself
def refuse_overrides(cls: type, owner: type, reason: str) -> None:
    """Refuse a subclass that overrides a final method. All methods of `owner` except the abstract ones are final.

    Call it in `__init_subclass__` of the abstract class.

    **Arguments:**

    - `cls`: the subclass that is being created.
    - `owner`: the abstract class. The methods of its own bases are final too.
    - `reason`: why the methods are final, and what to write instead; the message ends with it.

    **Raises:** `TypeError` naming the subclass, the method and the class that it belongs to.
    """
    bases = [base for base in owner.__mro__ if issubclass(base, eqx.Module) and base is not eqx.Module]
    finals = {name: base.__name__ for base in reversed(bases) for name in vars(base) if is_final(base, name)}
    for below in cls.__mro__[: cls.__mro__.index(owner)]:
        for name in (*vars(below), *vars(below).get("__annotations__", {})):
            if name in finals:
                raise TypeError(f"{cls.__name__}.{name} overrides `{finals[name]}.{name}`, which is final: {reason}")


def is_final(cls: type, name: str) -> bool:
    """Whether a class defines this method or property, and it is not abstract. Only `__call__` counts among dunders."""
    method = vars(cls).get(name)
    if not isinstance(method, types.FunctionType | property) or (name.startswith("__") and name != "__call__"):
        return False
    return not (getattr(method, "__isabstractmethod__", False) or is_hook(method))


def is_hook(method: Any) -> bool:
    """Whether `hook` marks the method."""
    return getattr(method, _HOOK, False)
