"""Compilation of a model's programs for devices that are not there."""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax

from .. import kernels
from .._arguments import check_model
from .._construction import check_integers, check_sizes
from .._language_model import AbstractLanguageModel
from .._memory import memory_errors
from .._residual_model import AbstractResidualLanguageModel
from .._scan_layers import depth
from .._shown import first_line, shown
from .._types import checks_itself
from . import _hlo
from ._bundles import Cycles, cycles_of_operations
from ._collectives import collectives
from ._compilers import devices, versions, written_by
from ._costs import bound, weights_of
from ._placement import as_kept, bytes_on_one, form_on, local, mesh_for, placed
from ._programs import PROGRAMS, Program, Sizes, is_form
from ._report import Compilation, Memory, Operation, PartReport
from ._targets import Target, read_target
from ._thunks import Launches, launches


_MOST = 10  # operations in a list of the costliest


@checks_itself
def compile_for(
    model: AbstractLanguageModel[Any],
    target: str,
    program: str = "generate",
    *,
    batch: int = 1,
    length: int = 512,
    max_new_tokens: int = 128,
    mesh: Mapping[str, int] | None = None,
    fully_sharded: bool = False,
) -> Compilation:
    """Compile a program of a model for a TPU or GPU that is not there, and read what the compiler made of it.

    The compilers are those that run on the devices' own machines. Nothing is computed, and weights are not read: a
    model may hold `jax.ShapeDtypeStruct`s in place of arrays, as `ssmkit.compilation.abstract_model` makes them.

        compilation = ssmkit.compile_for(model, "v6e", "step", batch=8)
        print(compilation.memory.total, compilation.parts[0].cycles)

    **Arguments:**

    - `model`: any language model, with or without values.
    - `target`: a device, and after a colon the topology of several: `"v5e:2x2"`, `"v6e"`, `"v5p:2x2x1"`,
        `"tpu7x:2x2x1"`, `"h100"`, `"h100:8"`.
    - `program`: `"step"`, `"prefill"`, `"generate"` (prompts and the decode loop), or `"train"` (a whole step of the
        trainer, which needs the extra `train`).
    - `batch`: the number of sequences.
    - `length`: the number of tokens of a prompt, or of a sequence to train on. A step comes after so many.
    - `max_new_tokens`: the number of tokens that `"generate"` has room for.
    - `mesh`: the sizes of the mesh's axes, such as `{"data": 4, "model": 2}`: rows are spread over `data`, weights over
        `model`, and the tokens of prompts over `sequence`. `None` takes one device.
    - `fully_sharded`: whether weights, and in training the optimiser's state, are spread over `data` too, as
        `ssmkit.fully_shard` does.

    **Returns:** a `Compilation`. Its cycles are lower bounds by the final schedule, and no measurements.

    **Raises:** `ValueError` naming the argument that does not fit; `ModuleNotFoundError` naming the extra that holds
    the compiler; `MemoryError` when a device's compiler finds that the program does not fit; `RuntimeError` when it
    refuses the program for another reason.
    """
    check_model(model)
    if program not in PROGRAMS:
        raise ValueError(f"`program` must be one of {', '.join(PROGRAMS)}, got {shown(program)}.")
    check_sizes(batch=batch, length=length)
    check_integers(max_new_tokens=max_new_tokens)
    if max_new_tokens < 1 and program == "generate":
        raise ValueError(f"`max_new_tokens` must be at least 1, got {max_new_tokens}.")
    aim = read_target(target)
    available = devices(aim)
    grid = mesh_for(mesh, available, str(aim))
    if fully_sharded and grid is None:
        raise ValueError("`fully_sharded` needs a `mesh`, over whose axis `data` weights are spread.")
    sizes = Sizes(batch, length, max_new_tokens, grid, fully_sharded)
    form = form_on(model, grid)
    ready = placed(PROGRAMS[program](form, sizes), sizes, available[0])
    return _compiled(form, aim, program, ready, sizes)


def _compiled(model: Any, target: Target, name: str, program: Program, sizes: Sizes) -> Compilation:
    """Compile a program whose arguments are placed, and read the result."""
    mesh = sizes.mesh
    with kernels.target(target.platform), jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
        made = _made(program, target)
        settled = as_kept(program, made.executable.output_shardings)
        if settled is not program:
            program, made = settled, _made(settled, target)
    module = _hlo.read_module(made.executable.as_text() or "")
    consumed_bytes = [bytes_on_one(leaf) for leaf in jax.tree.leaves(program.consumed) if is_form(leaf)]
    in_place = sum(consumed_bytes[i] for i in _hlo.aliased(module) if i < len(consumed_bytes))
    weights, axes = weights_of(model), {} if mesh is None else dict(mesh.shape)
    own = weights if mesh is None else weights_of(local(model, mesh))
    rows = sizes.batch // axes.get("data", 1)
    prompt = -(-sizes.length // axes.get("sequence", 1))
    measure = lambda tokens, logits: bound(own, sum(consumed_bytes), tokens, logits, target.device)
    return Compilation(
        program=name,
        target=str(target),
        mesh={axis: size for axis, size in axes.items() if size > 1},
        devices=math.prod(axes.values()),
        batch=sizes.batch,
        length=sizes.length,
        max_new_tokens=sizes.max_new_tokens if name == "generate" else None,
        layers=depth(model) if isinstance(model, AbstractResidualLanguageModel) else None,
        parameters=weights.parameters,
        weight_bytes=weights.nbytes,
        state_bytes=sum(consumed_bytes),
        state_aliased=in_place,
        memory=_memory(made.executable, target),
        host_transfers=tuple(_hlo.host_transfers(module)),
        custom_calls=_hlo.custom_calls(module),
        parts=tuple(_parts(module, made.cycles, made.started)),
        token=measure(rows, rows) if name in ("step", "generate") else None,
        prompt=measure(rows * prompt, rows) if name in ("prefill", "generate") else None,
        clock=target.device.clock,
        trace_seconds=made.trace_seconds,
        compile_seconds=made.compile_seconds,
        versions=versions(target),
        text=module.text,
    )


class _Made(NamedTuple):
    """A compiled program, what its compiler left beside it, and how long it took."""

    executable: jax.stages.Compiled
    cycles: Mapping[str, Cycles]
    started: list[Launches]
    trace_seconds: float
    compile_seconds: float


def _made(program: Program, target: Target) -> _Made:
    (shared, mapped, consumed), static = eqx.partition((program.shared, program.mapped, program.consumed), is_form)

    def run(consumed, shared, mapped):
        return eqx.filter(program.run(*eqx.combine((shared, mapped, consumed), static)), eqx.is_array)

    def refused(error: Exception) -> str:
        return (
            f"the program does not fit into a device of {target}: {first_line(error)} Spread it over more devices by "
            "`mesh`, or lower `batch` or `length`."
        )

    started = time.perf_counter()
    lowered = jax.jit(run, donate_argnums=0).lower(consumed, shared, mapped)
    traced = time.perf_counter()
    with written_by(target) as (options, folder):
        with memory_errors(refused):
            executable = lowered.compile(compiler_options=options)
        done = time.perf_counter()
        cycles = cycles_of_operations(folder) if target.platform == "tpu" else {}
        launched = _launches(folder) if target.platform == "cuda" else []
    return _Made(executable, cycles, launched, traced - started, done - traced)


def _launches(folder: Path) -> list[Launches]:
    """The launches of the program and of its loops; none if the compiler has written no sequence."""
    found = sorted(folder.glob("*thunk_sequence_after_thunk_passes.txt")) or sorted(folder.glob("*thunk_sequence.txt"))
    return list(launches(found[-1].read_text())) if found else []


def _parts(module: _hlo.Module, cycles: Mapping[str, Cycles], started: list[Launches]) -> list[PartReport]:
    found = list(_hlo.parts(module))
    by_form = {_hlo.form(module, i): cycles[i.name] for part in found for i in part.instructions if i.name in cycles}
    none = Cycles(0, 0)  # of operations on single numbers
    of = lambda i: cycles[i.name] if i.name in cycles else by_form.get(_hlo.form(module, i), none)
    by_part: list[Launches | None] = [*started] if len(started) == len(found) else [None] * len(found)
    reports = []
    for part, launched in zip(found, by_part, strict=True):
        total = sum(map(of, part.instructions if cycles else ()), start=none)
        reports.append(
            PartReport(
                name=part.name,
                trips=part.trips,
                operations=len(part.instructions),
                copies=tuple(_hlo.copies(part.instructions)),
                collectives=collectives(module, [*part.instructions, *part.condition]),
                cycles=total.total if cycles else None,
                unknown_loops=total.unknown_loops,
                costliest=tuple(_costliest([(i, of(i).total) for i in part.instructions if cycles])),
                kernels=None if launched is None else launched.kernels,
                launches=None if launched is None else launched.graphs + launched.alone,
            )
        )
    return reports


def _costliest(costs: list[tuple[_hlo.Instruction, int]]) -> Iterator[Operation]:
    for instruction, cycles in sorted(costs, key=lambda pair: -pair[1])[:_MOST]:
        if cycles > 0:
            yield Operation(instruction.name, cycles, instruction.source)


def _memory(compiled: Any, target: Target) -> Memory:
    told = compiled.memory_analysis()
    return Memory(
        arguments=told.argument_size_in_bytes,
        results=told.output_size_in_bytes,
        aliased=told.alias_size_in_bytes,
        temporaries=told.temp_size_in_bytes,
        code=told.generated_code_size_in_bytes,
        device=target.device.memory,
    )
