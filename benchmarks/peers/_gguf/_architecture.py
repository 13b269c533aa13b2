"""What an architecture of llama.cpp tells of itself, and the layouts that several share."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import gguf
import numpy as np


Config: TypeAlias = Any  # of `ssmkit.models`, with HF's names of its keys
Laid: TypeAlias = Iterator[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores the models of one architecture."""

    arch: gguf.MODEL_ARCH
    """Its number in llama.cpp's tables of names."""
    describe: Callable[[gguf.GGUFWriter, Config], None]
    """Writes the sizes and constants of a configuration."""
    lay_out: Callable[[Config, str, np.ndarray], Laid]
    """The tensors that hold a tensor of HF's, with names that llama.cpp's table of names knows, or its own names."""


def describe_recurrence(
    writer: gguf.GGUFWriter, *, taps: int, channels: int, state: int, heads: int, groups: int
) -> None:
    """Write the sizes of Mamba-2 mixers."""
    writer.add_ssm_conv_kernel(taps)
    writer.add_ssm_inner_size(channels)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(groups)


def lay_out_recurrence(name: str, tensor: np.ndarray, groups: int) -> Laid:
    """A tensor of a Mamba-2 mixer. Other tensors pass unchanged."""
    match name.rpartition("mixer." if "mixer." in name else "mamba.")[2]:
        case "A_log":
            yield name, -np.exp(tensor)[:, None]
        case "D":
            yield name, tensor[:, None]
        case "dt_bias":
            yield name.replace("dt_bias", "dt_proj.bias"), tensor
        case "conv1d.weight":
            yield name, tensor[:, 0]
        case "norm.weight":
            yield name, tensor.reshape(groups, -1)
        case _:
            yield name, tensor
