"""Mamba-2."""

import gguf
import numpy as np

from ._architecture import Architecture, Config, Laid, describe_recurrence, lay_out_recurrence


def _describe(writer: gguf.GGUFWriter, config: Config) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    describe_recurrence(
        writer,
        taps=config.conv_kernel,
        channels=config.num_heads * config.head_dim,
        state=config.state_size,
        heads=config.num_heads,
        groups=config.n_groups,
    )


def _lay_out(config: Config, name: str, tensor: np.ndarray) -> Laid:
    yield from lay_out_recurrence(name, tensor, config.n_groups)


ARCHITECTURE = Architecture(gguf.MODEL_ARCH.MAMBA2, _describe, _lay_out)
