"""Options that several commands share."""

import contextlib
import enum
import math
import os
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    from jax.sharding import Mesh


_CPU_DEVICES = "jax_num_cpu_devices"


class DType(enum.StrEnum):
    """The dtypes that weights can be loaded in."""

    float32 = enum.auto()
    bfloat16 = enum.auto()
    float16 = enum.auto()


class Kind(enum.StrEnum):
    """The kinds of quantised matrices."""

    int8 = enum.auto()
    bfloat16 = enum.auto()


ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="DIR|FILE|ID",
        help="A checkpoint folder, a weight file, or an id on the Hugging Face hub.",
        show_default="the embedded model",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The branch, tag or commit of a model on the hub.", show_default="the hub's main branch"
    ),
]
TokenizerOption = Annotated[
    str | None,
    typer.Option(
        metavar="DIR|FILE|ID",
        help="A tokenizer.json or tokenizer.model, its folder, or an id on the Hugging Face hub.",
        show_default="the model's own",
    ),
]
TokenizerRevisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The branch, tag or commit of --tokenizer.", show_default="the hub's main branch"
    ),
]
NoSpecialTokensOption = Annotated[
    bool, typer.Option("--no-special-tokens", help="Leave out the tokens that the tokenizer puts around a text.")
]
DTypeOption = Annotated[
    DType | None,
    typer.Option(help="The dtype of the weights; norms and decay rates stay float32.", show_default="float32"),
]
QuantizeOption = Annotated[
    Kind | None, typer.Option(help="Quantise the matrices of projections and embeddings.", show_default="no")
]
MeshOption = Annotated[
    str | None,
    typer.Option(
        metavar="AXIS=SIZE,..",
        help="Devices along data (rows), model (weights) and sequence (tokens): data=4,model=2.",
        show_default="one device",
    ),
]
JSONOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_mesh(mesh: str) -> dict[str, int]:
    """The sizes of axes in the words of `MeshOption`.

    **Raises:** `ValueError` when they are none.
    """
    axes: dict[str, int] = {}
    for part in mesh.split(","):
        name, _, size = part.partition("=")
        if not size.isdecimal() or name.strip() in axes:
            raise ValueError(f"--mesh must be like data=4,model=2, got {mesh!r}")
        axes[name.strip()] = int(size)
    return axes


def make_mesh(mesh: str | None) -> "Mesh | None":
    """The mesh of `MeshOption`, on the devices that there are. A CPU gives as many as the mesh takes.

    Call it before anything is computed.

    **Raises:** `ValueError` for unknown axes, and when there are too few devices.
    """
    from ..parallel import _mesh

    if mesh is None:
        return None
    sizes = _mesh.read_axes(read_mesh(mesh))
    _let_cpu_count_as(math.prod(sizes.values()))
    return _mesh.make_mesh(data=sizes["data"], model=sizes["model"], sequence=sizes["sequence"])


def _let_cpu_count_as(devices: int) -> None:
    """Let the CPU be several devices, unless JAX has started, there are many processes, or the user says a number."""
    import jax

    if jax.distributed.is_initialized():
        return
    is_said = getattr(jax.config, _CPU_DEVICES) >= 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not is_said:
        with contextlib.suppress(RuntimeError):  # JAX has started: the mesh takes the devices that there are
            jax.config.update(_CPU_DEVICES, devices)
