"""The compilers of XLA for devices that are not there: finding them, and the settings that they need."""

import contextlib
import functools
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .._shown import first_line
from ._targets import Target, gpu_description


def devices(target: Target) -> list[Any]:
    """The devices of a target, as JAX describes devices that are not there.

    **Raises:** `ModuleNotFoundError` naming the extra to install; `ValueError` for a topology that the compiler
    refuses.
    """
    from jax.experimental import topologies

    if target.platform == "cuda":
        _ready_for_cuda()
        options = {"target_config": gpu_description(target.device), "topology": f"1x{target.topology}x1"}
        name = ""
    else:
        _ready_for_tpu()
        options, name = {}, str(target)
    try:
        return list(topologies.get_topology_desc(platform=target.platform, topology_name=name, **options).devices)
    except Exception as error:  # the plugin raises errors of its own kind
        raise ValueError(
            f"`target` must give a topology that exists: the compiler refuses {target}: {first_line(error)}"
        ) from error


def versions(target: Target) -> dict[str, str]:
    """The versions of the packages that compile for a target."""
    from importlib.metadata import version

    package = "libtpu" if target.platform == "tpu" else _cuda_plugin()
    assert package is not None  # it has given the target's devices
    return {name: version(name) for name in ("jax", package)}


def _require(found: bool, package: str, extra: str, why: str) -> None:
    if not found:
        raise ModuleNotFoundError(f"{why} needs {package}: pip install 'ssmkit[{extra}]'", name=package)


@functools.cache
def _ready_for_tpu() -> None:
    """Set what libtpu reads as it is loaded: that it may be loaded beside others, and where schedules go."""
    _require(importlib.util.find_spec("libtpu") is not None, "libtpu", "aot-tpu", "compiling for TPU")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to ask for the topology
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v6e-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
    flags = {
        "xla_jf_dump_to": _schedules().name,
        "xla_jf_dump_llo_text": "true",
        "xla_jf_dump_hlo_text": "false",
        "xla_jf_dump_llo_pass_label_regex": ".*final_bundles.*",
    }
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if "xla_jf_dump" not in given:  # somebody else's wish comes first; there are then no cycles
        wanted = [given, *(f"--{name}={value}" for name, value in flags.items())]
        os.environ["LIBTPU_INIT_ARGS"] = " ".join(wanted).strip()


@functools.cache
def _ready_for_cuda() -> None:
    """Make the assembler findable. The compiler looks for it on the path, and for the device library beside it."""
    _require(_cuda_plugin() is not None, "jax-cuda12-plugin", "aot-cuda", "compiling for CUDA")
    folder = _cuda_folder()
    _require(folder is not None, "nvidia-cuda-nvcc-cu12", "aot-cuda", "compiling for CUDA")
    os.environ["PATH"] = os.pathsep.join([f"{folder}/bin", os.environ.get("PATH", "")])


def _cuda_plugin() -> str | None:
    """The package with JAX's plugin for CUDA, of either version."""
    packages = "jax-cuda12-plugin", "jax-cuda13-plugin"
    return next((name for name in packages if importlib.util.find_spec(name.replace("-", "_")) is not None), None)


def _cuda_folder() -> Path | None:
    """The folder with `bin/ptxas` and `nvvm/libdevice`: that of the package, or that of an installed CUDA."""
    for entry in sys.path:
        for name in ("cuda_nvcc", "cu13"):
            folder = Path(entry, "nvidia", name)
            if (folder / "bin" / "ptxas").is_file():
                return folder
    found = shutil.which("ptxas")
    return Path(found).resolve().parents[1] if found else None


@functools.cache
def _schedules() -> tempfile.TemporaryDirectory[str]:
    """The folder into which libtpu writes the schedules of all programs. It goes as the process ends."""
    return tempfile.TemporaryDirectory(prefix="ssmkit-", ignore_cleanup_errors=True)


@contextlib.contextmanager
def written_by(target: Target) -> Iterator[tuple[dict[str, Any], Path]]:
    """The options of a compilation, and the folder where the compiler leaves what is no part of its result.

    For a TPU it leaves the final schedule of every operation, for a GPU the sequence of kernels. The folder is empty
    before, and what was written into it is gone afterwards.
    """
    if target.platform == "tpu":
        folder = Path(_schedules().name)
        _empty(folder)
        try:
            yield {}, folder
        finally:
            _empty(folder)
        return
    with tempfile.TemporaryDirectory(prefix="ssmkit-", ignore_cleanup_errors=True) as folder:
        # Without a device, nothing can be tried: the forms of products are the compiler's first choice.
        options = {"xla_gpu_autotune_level": 0, "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        found = _cuda_folder()
        if found is not None:
            options["xla_gpu_cuda_data_dir"] = str(found)
        yield options, Path(folder)


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            path.unlink()
