"""`StoredTensor`: the description of one tensor in a file. Nothing is read until `StoredTensor.read`."""

import dataclasses
import math
import pathlib

import numpy as np

from .._reading import open_regular
from ._errors import CheckpointError


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A little-endian tensor that starts `offset` bytes into the file `path`.

    Two equal `StoredTensor`s are the same bytes.
    """

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int
    strides: tuple[int, ...] | None = None
    """The strides in bytes; `None` when the tensor is contiguous in row-major order."""

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that the elements take up in memory."""
        return self.size * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Map the tensor read-only: pages of the file enter memory when they are touched, and leave with the array.

        **Returns:** an array of `shape` and `dtype`, possibly unaligned.

        **Raises:** `CheckpointError` when the file has become shorter or unreadable since it was opened, or when no
        array can have this shape.
        """
        length = self.nbytes
        if self.strides is not None:
            last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
            length = last + self.dtype.itemsize
        try:
            if length == 0:
                return np.empty(self.shape, self.dtype)
            with open_regular(self.path) as file:
                mapped = np.memmap(file, np.uint8, "r", self.offset, (length,))
            return np.ndarray(self.shape, self.dtype, mapped, 0, self.strides)
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise CheckpointError(f"`{self.path}` cannot be mapped at byte {self.offset}: {error}.") from error
