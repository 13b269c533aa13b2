"""A pickle machine that can build dictionaries of tensors, and nothing else.

A pickle is a program for a stack machine, and the standard machine imports and calls what the program names. This one
knows the few instructions that describe a dictionary of tensors. Every other instruction, and every name outside the
caller's table, is an error.

The cost of an instruction is at most a constant times its own bytes, so the cost of a pickle is bounded by its size.
Operands can be taken from the memo again and again. The table lists the instructions that could therefore cost more,
and the bound on each:

| instruction | possible cost | bound |
|---|---|---|
| all unknown instructions | decoding the argument, such as decimal integers | refused before it is read |
| `GLOBAL`, `STACK_GLOBAL` | writing nested tuples as text | names are strings; an unknown name ends the program |
| `SETITEM`, `SETITEMS` | hashing and comparing nested tuples or long strings | keys are strings, and short |
| `BINUNICODE`, `SHORT_BINUNICODE` | comparing long strings, formatting them into names of members | short |
| `REDUCE` | passing long tuples; the work of a function | few arguments; the caller's functions do little |
| `BINPERSID` | the work of the caller | the caller looks at few and short items |
| `LONG1`, `LONG4` | writing long integers as decimals | never written; only compared |
| `TUPLE`, `SETITEMS` | copying the stack | each item is pushed by an instruction and taken once |
| `BINPUT`, `LONG_BINPUT`, `MEMOIZE` | nothing: the memo is a dictionary, not a list as long as the largest index | |
| `PROTO`, `FRAME`, `BUILD`, constants | nothing | |
"""

import io
import pickletools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ._errors import CheckpointError


_MARK = object()
_LONGEST_TEXT = 1000  # characters: texts are names of tensors, of storages and of devices
_MOST_ARGUMENTS = 8

_KNOWN = frozenset(
    """
    PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 BINFLOAT BINUNICODE SHORT_BINUNICODE
    EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 TUPLE EMPTY_DICT SETITEM SETITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET
    GLOBAL STACK_GLOBAL REDUCE BINPERSID BUILD
    """.split()
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


def run_pickle(program: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """Run a pickle that builds dictionaries out of constants and of `names`, and nothing else.

    **Arguments:**

    - `program`: the pickle, of protocol 2 to 5.
    - `names`: the value of each global (`"module name"`). The functions among them may be called.
    - `persistent`: a function that returns the value of a persistent id.

    **Returns:** the object that the pickle describes.

    **Raises:** `CheckpointError` naming a global or an instruction that describes no tensor; any exception when the
    pickle is malformed.

    ??? cite "Source"

        The instruction set is documented in the standard library's `pickletools`.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def pop_mark() -> list[Any]:
        """Pop everything above the topmost mark."""
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
        """The value of a global."""
        if name not in names:
            raise CheckpointError(
                f"The checkpoint asks for `{name.replace(' ', '.')}`, which is no part of a tensor. Nothing was"
                " executed. Save the model's `state_dict()` with plain tensors."
            )
        return names[name]

    for name, argument in _instructions(program):
        match name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (result,) = stack
                return result
            case "MARK":
                stack.append(_MARK)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append(_CONSTANTS[name])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE":
                if len(argument) > _LONGEST_TEXT:
                    raise ValueError(f"a text of {len(argument)} characters, more than {_LONGEST_TEXT}")
                stack.append(argument)
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
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
                attribute, module = stack.pop(), stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise ValueError("a name that is no text")
                stack.append(lookup(f"{module} {attribute}"))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, types.FunctionType):
                    raise ValueError("a call of something that cannot be called")
                if not isinstance(arguments, tuple) or len(arguments) > _MOST_ARGUMENTS:
                    raise ValueError("a call with arguments that are no short tuple")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(persistent(stack.pop()))
            case "BUILD":  # attributes of the dictionary (`_metadata`): versions of PyTorch's modules, of no use here
                stack.pop()
    raise ValueError("the pickle does not end")


def _instructions(program: bytes) -> Iterator[tuple[str, Any]]:
    """The names and arguments of the instructions, as `pickletools.genops`. Only known arguments are read.

    **Raises:** `CheckpointError` at an instruction that describes no tensor, `ValueError` at an invalid instruction.
    """
    file = io.BytesIO(program)
    while code := file.read(1):
        opcode = _OPCODES.get(code)
        if opcode is None:
            raise ValueError(f"at position {file.tell() - 1}, {code!r} is no instruction")
        if opcode.name not in _KNOWN:
            raise CheckpointError(
                f"The checkpoint uses the pickle instruction {opcode.name}, which describes no tensor, or is damaged."
            )
        yield opcode.name, None if opcode.arg is None else opcode.arg.reader(file)
