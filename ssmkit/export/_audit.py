"""What a program consists of: StableHLO, and nothing that a backend would have to bring along."""

import re
from collections.abc import Iterator


# Dialects that every XLA backend compiles by itself: StableHLO, its extension CHLO, and functions.
_STANDARD = {"builtin", "chlo", "func", "stablehlo"}
# A custom call that computes nothing: it states what sizes must be, and is gone once they are known.
_MARKERS = {"shape_assertion"}

_OPERATION = re.compile(r'^\s*(?:%[^=]*= *)?"?([a-z_]\w*)\.([\w.$-]+)"?(?=[\s(<@])', re.MULTILINE)
_LEAVING = re.compile(r"\b([a-z_]\w*\.(?:custom_call|infeed|outfeed|recv|send))\b([^\n]*)")
_TARGET = re.compile(r'^ @(?:"([^"]*)"|([^"(\s]+))|call_target_name = "([^"]*)"')


def foreign_operations(module: str) -> list[str]:
    """What in a program is more than standard operations.

    **Arguments:**

    - `module`: the text of a StableHLO module, such as `jax.export.Exported.mlir_module()` gives.

    **Returns:** the operations that are not of a standard dialect, and those that leave the program: custom calls, with
    their targets, and host transfers. Each once, sorted; assertions about sizes are left out.
    """
    return sorted(set(_foreign(module)))


def _foreign(module: str) -> Iterator[str]:
    for operation in _LEAVING.finditer(module):
        found = _TARGET.search(operation[2])
        target = found and (found[1] or found[2] or found[3])
        if target not in _MARKERS:
            yield f"{operation[1]} @{target}" if target else operation[1]
    for operation in _OPERATION.finditer(module):
        if operation[1] not in _STANDARD:
            yield f"{operation[1]}.{operation[2]}"
