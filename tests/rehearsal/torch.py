"""The few functions of PyTorch that the benchmarks call, on NumPy arrays: a stand-in where no GPU is."""

import contextlib
import types

import numpy as np


class Tensor(np.ndarray):
    def cuda(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        return np.asarray(self)

    def float(self):
        return self.astype(np.float32)

    def argmax(self, dim, keepdim=False):  # pyright: ignore[reportIncompatibleMethodOverride]
        return np.argmax(np.asarray(self), dim, keepdims=keepdim).view(Tensor)


class inference_mode(contextlib.ContextDecorator):
    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None


bfloat16 = "bfloat16"
cuda = types.SimpleNamespace(is_available=lambda: True, synchronize=lambda: None)
mv = mm = np.matmul
full_like = np.full_like


def from_numpy(array):
    return array.view(Tensor)


def ones(*shape):
    return from_numpy(np.ones(shape, np.float32))


def cat(parts, dim):
    return np.concatenate(parts, dim).view(Tensor)


def get_num_threads():
    return 1
