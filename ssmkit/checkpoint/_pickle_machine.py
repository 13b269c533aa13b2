"""A pickle machine that can build dictionaries of tensors, and nothing else.

A pickle is a program for a stack machine, and the standard machine imports and calls what the program names. This one
knows the few instructions that describe a dictionary of tensors. Every other instruction, and every name outside the
caller's table, is an error. It allocates nothing that is larger than the pickle itself.
"""

import pickletools
import types
from collections.abc import Callable, Mapping
from typing import Any

from ._errors import CheckpointError


_MARK = object()


def run_pickle(program: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """Run a pickle that builds dictionaries out of constants and of `names`, and nothing else.

    **Arguments:**

    - `program`: the pickle, of protocol 2 to 5.
    - `names`: what each global (`"module name"`) stands for. The functions among them may be called.
    - `persistent`: what a persistent id stands for.

    **Returns:** the object that the pickle describes.

    **Raises:** `CheckpointError` naming a global or an instruction that describes no tensor; any exception when the
    pickle is malformed.

    ??? cite "Source"

        The instruction set is documented in the standard library's `pickletools`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_mark() -> list[Any]:
        """Everything above the topmost mark."""
        items: list[Any] = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def update(target: Any, items: list[Any]) -> None:
        """Add keys and values that alternate in `items`."""
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("a dictionary whose keys are not names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def lookup(name: str) -> Any:
        """What a global stands for here."""
        if name not in names:
            raise CheckpointError(
                f"The checkpoint asks for `{name.replace(' ', '.')}`, which is no part of a tensor. Nothing was"
                " executed. Save the model's `state_dict()` with plain tensors."
            )
        return names[name]

    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                stack.append(tuple(pop_mark()))
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                update(stack[-1], [key, value])
            case "SETITEMS":
                items = pop_mark()
                update(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(lookup(argument))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(lookup(f"{module} {name}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, types.FunctionType):
                    raise ValueError("a call of something that cannot be called")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "BUILD":  # attributes of the dictionary (`_metadata`): versions of PyTorch's modules, of no use here
                stack.pop()
            case name:
                raise CheckpointError(f"The checkpoint uses the pickle instruction {name}, which describes no tensor.")
    raise ValueError("the pickle does not end")
