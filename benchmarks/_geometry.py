r"""The measured geometries, and the cost of one token in each: the definitions of HBU and MFU.

**Bytes** of one decoding step with `batch` sequences: every weight is read once. The state and the convolution's window
of each sequence, in float32, are read once and written once. A tied embedding is read completely, as the head. From an
untied embedding a step reads one row per sequence, which is not counted. Activations are not counted, because they fit
into caches. These bytes per second, as a fraction of a measured bandwidth, are the *hardware bandwidth utilisation*,
HBU.

**FLOPs** of one token of a prompt, two per multiply-add: the projections, $2 D (D_{in} + D_{inner})$ per layer; the
convolution; the recurrence in chunks of $Q$ tokens, $2 Q G N + 2 Q H P$ inside chunks and $4 H N P$ between them; and
the logits, $2 D V$, after the last token only. The fraction of a measured rate of matrix products that *projections and
last logits alone* reach is the *model FLOP utilisation*, MFU: the recurrence is overhead by that definition.
"""

import dataclasses
import functools
from typing import Any


# The bytes of an element of a weight matrix, and the bytes that are stored beside each row.
STORAGE: dict[str, tuple[float, int]] = {
    "float32": (4, 0),
    "bfloat16": (2, 0),
    "int8": (1, 4),  # a float32 scale per output channel
    "q8_0": (34 / 32, 0),  # llama.cpp: a float16 scale per 32 elements
}


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a Mamba-2 language model. By default it has one group of B and C, and a tied head."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    state_size: int = 128
    head_dim: int = 64
    n_groups: int = 1
    conv_kernel: int = 4
    expand: int = 2
    tied: bool = True

    @functools.cached_property
    def config(self) -> Any:
        """As `ssmkit.models.Mamba2Config`."""
        from ssmkit.models import Mamba2Config

        keys = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "tied"}
        return Mamba2Config(**keys, tie_word_embeddings=self.tied)

    @property
    def inner(self) -> int:
        """The number of channels of a mixer."""
        return self.expand * self.hidden_size

    @property
    def heads(self) -> int:
        """The number of heads of a mixer."""
        return self.inner // self.head_dim

    @property
    def conv(self) -> int:
        """The number of channels of the convolution: x, B and C."""
        return self.inner + 2 * self.n_groups * self.state_size

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """The weight matrices of a step: their number, rows (outputs) and columns."""
        layers, width = self.num_hidden_layers, self.hidden_size
        return [
            (layers, self.inner + self.conv + self.heads, width),
            (layers, width, self.inner),
            (1, self.vocab_size, width),
        ]

    @property
    def vector_bytes(self) -> int:
        """The bytes of all other arrays, always float32: norms, decay rates, biases, skips, convolutions."""
        layer = self.hidden_size + (self.conv_kernel + 1) * self.conv + 3 * self.heads + self.inner
        return 4 * (self.num_hidden_layers * layer + self.hidden_size)

    def weight_bytes(self, storage: str = "float32") -> int:
        """The bytes of the weights that one step reads."""
        element, row = STORAGE[storage]
        matrices = sum(count * rows * (columns * element + row) for count, rows, columns in self.matrices)
        return round(matrices) + self.vector_bytes

    @property
    def parameters(self) -> int:
        """The number of parameters, an untied embedding included."""
        matrices = sum(count * rows * columns for count, rows, columns in self.matrices)
        return matrices + self.vector_bytes // 4 + (0 if self.tied else self.vocab_size * self.hidden_size)

    @property
    def state_bytes(self) -> int:
        """The bytes of one sequence's cache: states and windows, float32."""
        layer = self.heads * self.state_size * self.head_dim + (self.conv_kernel - 1) * self.conv
        return 4 * self.num_hidden_layers * layer

    def step_bytes(self, batch: int = 1, storage: str = "float32") -> int:
        """The least number of bytes that one decoding step moves."""
        return self.weight_bytes(storage) + 2 * batch * self.state_bytes

    @property
    def projection_flops(self) -> int:
        """The FLOPs per token of both projections of every layer."""
        return sum(2 * count * rows * columns for count, rows, columns in self.matrices[:-1])

    @property
    def logit_flops(self) -> int:
        """The FLOPs per token whose logits are computed."""
        return 2 * self.vocab_size * self.hidden_size

    def recurrence_flops(self, chunk: int = 64) -> int:
        """The FLOPs per token of convolution and recurrence in chunks of this size; masked halves of matrices count."""
        inside = 2 * chunk * (self.n_groups * self.state_size + self.inner)
        between = 4 * self.inner * self.state_size
        return self.num_hidden_layers * (inside + between + 2 * self.conv_kernel * self.conv)

    def prefill_flops(self, tokens: int, batch: int = 1) -> int:
        """The FLOPs that MFU counts for a batch of prompts: projections, and the logits after each prompt."""
        return batch * (tokens * self.projection_flops + self.logit_flops)


GEOMETRIES: dict[str, Geometry] = {
    "130m": Geometry(50288, 768, 24),
    "370m": Geometry(50288, 1024, 48),
    "780m": Geometry(50288, 1536, 48),
    "1.3b": Geometry(50288, 2048, 48),
    "2.7b": Geometry(50288, 2560, 64),
    "7b": Geometry(32768, 4096, 64, n_groups=8, tied=False),  # Mamba-Codestral-7B-v0.1
    "10m": Geometry(4096, 384, 8),  # for training
    "tiny": Geometry(256, 64, 2, state_size=16, head_dim=16),  # for tests
}
