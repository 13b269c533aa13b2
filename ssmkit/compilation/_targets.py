"""The devices that programs are compiled for: their published figures, and the topologies that a target names.

Figures are per device as JAX counts devices. A chip of TPU v4 and of TPU7x has two cores, which are two devices.

- TPU: https://cloud.google.com/tpu/docs/system-architecture-tpu-vm and the pages of the versions, read in 2026. A clock
  is the peak divided by the operations per cycle of the matrix units, 128 x 128 (v4: 8, v5e: 4, v5p: 8) or 256 x 256
  (v6e: 4); for TPU7x no number of units is published, so that it has no clock here.
- H100 and H200 (SXM): NVIDIA's data sheets, and the CUDA programming guide, table "Technical Specifications per Compute
  Capability", for capability 9.0. Peaks are without sparsity.
"""

import dataclasses
import re

from .._shown import shown


@dataclasses.dataclass(frozen=True)
class Device:
    """The published figures of one device."""

    name: str
    platform: str
    """`"tpu"` or `"cuda"`."""
    memory: int
    """The bytes of its memory."""
    bandwidth: float
    """The bytes per second that its memory delivers."""
    flops: float
    """The bfloat16 FLOP per second of its matrix units."""
    smallest: str
    """The smallest topology of such devices."""
    clock: float | None = None
    """The cycles per second of a TPU's core, if they are known."""


_GB, _GIB = 1e9, 1 << 30

DEVICES: dict[str, Device] = {
    device.name: device
    for device in (
        Device("v4", "tpu", 16 * _GIB, 614e9, 137.5e12, "1x1x1", 1.05e9),
        Device("v5e", "tpu", 16 * _GIB, 819e9, 197e12, "1x1", 1.5e9),
        Device("v5p", "tpu", 95 * _GIB, 2765e9, 459e12, "1x1x1", 1.75e9),
        Device("v6e", "tpu", 32 * _GIB, 1638e9, 918e12, "1x1", 1.75e9),
        Device("tpu7x", "tpu", 96 * _GIB, 3690e9, 1153.5e12, "1x1x1"),
        Device("h100", "cuda", 80 * _GIB, 3352e9, 989e12, "1"),
        Device("h200", "cuda", 141 * _GIB, 4800e9, 989e12, "1"),
    )
}
"""The devices by their names, with their published figures and the pages that publish them in this file's head."""


@dataclasses.dataclass(frozen=True)
class Target:
    """A device, and the arrangement of several of them that a program is compiled for."""

    device: Device
    topology: str
    """Numbers with `x` between them: `"2x2"` for TPU, the number of devices of one host for GPU."""

    @property
    def platform(self) -> str:
        """`"tpu"` or `"cuda"`."""
        return self.device.platform

    def __str__(self) -> str:
        return f"{self.device.name}:{self.topology}"


def read_target(target: str) -> Target:
    """Read a target, such as `"v6e:2x2"`, `"tpu7x:2x2x1"`, `"h100"` or `"h100:8"`.

    **Arguments:**

    - `target`: the name of a device; after a colon, its topology. Without one, it is a single chip.

    **Raises:** `ValueError` for an unknown device, or something that is no topology of it.
    """
    name, _, topology = target.partition(":")
    if name not in DEVICES:
        raise ValueError(f"`target` must name one of {', '.join(DEVICES)}, got {shown(target)}.")
    device = DEVICES[name]
    dimensions = device.smallest.count("x") + 1
    if ":" in target and re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), topology) is None:
        example = {1: "8", 2: "2x2", 3: "2x2x1"}[dimensions]
        raise ValueError(f"`target` must give a topology of {name}, such as {name}:{example}, got {shown(target)}.")
    return Target(device, topology or device.smallest)


def gpu_description(device: Device) -> str:
    """What XLA's GPU compiler needs to know of a GPU of capability 9.0, as the text of a `GpuTargetConfigProto`."""
    return f"""
    gpu_device_info {{
      name: "NVIDIA {device.name.upper()}" device_vendor: "NVIDIA Corporation"
      device_memory_size: {device.memory} memory_bandwidth: {round(device.bandwidth)}
      core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: {50 << 20}
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {227 << 10} shared_memory_per_core: {228 << 10}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
      driver_version: "13.0.0" runtime_version: "12.9.0" compile_time_toolkit_version: "12.9.0"
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    device_description_str: "NVIDIA {device.name.upper()}"
    """
