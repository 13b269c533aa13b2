"""Torch's zip files, made by hand."""

import pathlib
import pickle
import zipfile


DICT = b"\x80\x02ccollections\nOrderedDict\n)R("
FLOATS = b"ctorch\nFloatStorage\n"


def constant(value) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def persistent(kind="storage", storage=FLOATS, key="0", count=6) -> bytes:
    return b"(" + constant(kind) + storage + constant(key) + constant("cpu") + constant(count) + b"tQ"


def tensor(storage=None, offset=0, shape=(3, 2), strides=(2, 1), rest=b"\x89}") -> bytes:
    """The instructions that push one tensor."""
    view = constant(offset) + constant(shape) + constant(strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + (storage or persistent()) + view + rest + b"tR"


def archive(path, program, *, compression=zipfile.ZIP_STORED, members=()) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", program)
        for name, content in {"a/data/0": bytes(24), **dict(members)}.items():
            file.writestr(name, content)
    return path


def one(value: bytes) -> bytes:
    """A dictionary of one entry."""
    return DICT + constant("x") + value + b"u."
