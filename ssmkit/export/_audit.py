"""A check that programs consist of StableHLO only, without operations that a particular backend must supply."""

import re
from collections.abc import Iterator


# The operations that every XLA backend compiles: StableHLO without operations that leave the program or communicate
# with other devices, its extension CHLO, and functions. `None` stands for every operation of a dialect.
_STANDARD: dict[str, frozenset[str] | None] = {
    "builtin": frozenset({"module"}),
    "chlo": None,
    "func": frozenset({"call", "func", "return"}),
    "stablehlo": frozenset(
        """
        abs add after_all and atan2 batch_norm_grad batch_norm_inference batch_norm_training bitcast_convert broadcast
        broadcast_in_dim case cbrt ceil cholesky clamp compare complex concatenate constant convert convolution cosine
        count_leading_zeros create_token divide dot dot_general dynamic_broadcast_in_dim dynamic_conv dynamic_gather
        dynamic_iota dynamic_pad dynamic_reshape dynamic_slice dynamic_update_slice einsum exponential
        exponential_minus_one fft floor gather get_dimension_size get_tuple_element if imag iota is_finite log
        log_plus_one logistic map maximum minimum multiply negate not optimization_barrier or pad popcnt power real
        real_dynamic_slice reduce reduce_precision reduce_window remainder reshape return reverse rng rng_bit_generator
        round_nearest_afz round_nearest_even rsqrt scatter select select_and_scatter set_dimension_size shift_left
        shift_right_arithmetic shift_right_logical sign sine slice sort sqrt subtract tan tanh torch_index_select
        transpose triangular_solve tuple unary_einsum uniform_dequantize uniform_quantize while xor
        """.split()
    ),
}
# A custom call that computes nothing: it asserts sizes, and is removed once the sizes are known.
_MARKER = re.compile(r"stablehlo\.custom_call @shape_assertion\(")

# A cumulative sum for a GPU, as jax 0.12 writes it: a composite of XLA, with its decomposition in the same module.
_CUMULATIVE = re.compile(r'stablehlo\.composite "chlo\.scan" ')

_OPERATION = re.compile(r'^\s*(?:%[^=]*= *)?("?)([a-z_]\w*)\.([\w.$-]+)"?(?=[\s(<@])([^\n]*)', re.MULTILINE)
_INLINE = re.compile(r'(?:"([a-z_]\w*)\.([\w.$-]+)"\((?=[%)])|\bapplies ([a-z_]\w*)\.([\w.$-]+))')
_SHORTENED = re.compile(r"^\s*(?:%[^=]*= *)?(call_indirect|constant)\b", re.MULTILINE)  # of the dialect `func`
_WITHOUT_BODY = re.compile(r"^\s*func\.func [^\n]*[^{\s]\s*$", re.MULTILINE)
_TARGET = re.compile(r'^ @(?:"([^"]*)"|([^"(\s]+))|(?<![\w.])call_target_name = "([^"]*)"')


def foreign_operations(module: str) -> list[str]:
    """The operations of a program that are not standard.

    **Arguments:**

    - `module`: the text of a StableHLO module as MLIR prints it, for example from
        `jax.export.Exported.mlir_module()`.

    **Returns:** the foreign operations, each once, sorted: operations of other dialects, custom calls with their
    targets, composites except XLA's cumulative sum, host transfers, communication, and functions without a body.
    Assertions about sizes are left out.
    """
    return sorted(set(_foreign(module)))


def _foreign(module: str) -> Iterator[str]:
    for operation in _OPERATION.finditer(module):
        quoted, dialect, name, rest = operation.groups()
        spelled = f"{dialect}.{name}{rest}"
        if _known(dialect, name) or (not quoted and (_MARKER.match(spelled) or _CUMULATIVE.match(spelled))):
            continue
        found = _TARGET.search(rest) if name == "custom_call" else None
        target = found and (found[1] or found[2] or found[3])
        yield f"{dialect}.{name} @{target}" if target else f"{dialect}.{name}"
    for operation in _INLINE.finditer(module):
        dialect, name = operation[1] or operation[3], operation[2] or operation[4]
        if name != "custom_call" and not _known(dialect, name):
            yield f"{dialect}.{name}"
    for operation in _SHORTENED.finditer(module):
        yield f"func.{operation[1]}"
    if _WITHOUT_BODY.search(module):
        yield "func.func without a body"


def _known(dialect: str, name: str) -> bool:
    if dialect not in _STANDARD:
        return False
    names = _STANDARD[dialect]
    return names is None or name in names
