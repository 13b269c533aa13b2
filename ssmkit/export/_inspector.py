"""The process that reads programs first: a script without imports of the package, so that it starts quickly.

It reads programs from standard input, each after its length in 8 bytes. For each program it writes one line of JSON to
standard output: the reason why the program must not be used, or `null`. It may crash at any program.
"""

import json
import pathlib
import runpy
import sys


_DATA = 8 << 30  # bytes of memory


def _limit() -> None:
    try:
        import resource
    except ImportError:  # not on Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    most = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if most == resource.RLIM_INFINITY or most > _DATA:
        resource.setrlimit(resource.RLIMIT_DATA, (_DATA, most))


def _reason(content: bytes, export, foreign_operations) -> str | None:
    try:
        exported = export.deserialize(bytearray(content))
    except Exception as error:  # a hostile file may fail anywhere in it, in any way
        return f"not readable by this JAX ({type(error).__name__}: {str(error)[:300]})"
    try:
        module = exported.mlir_module()
    except Exception as error:  # of the parser
        return f"its StableHLO is not readable by this JAX ({str(error)[:300]})"
    foreign = foreign_operations(module)
    return f"is more than StableHLO: {', '.join(foreign[:10])}" if foreign else None


def _main() -> None:
    _limit()
    from jax import export

    audit = runpy.run_path(str(pathlib.Path(__file__).with_name("_audit.py")))
    print("ready", flush=True)
    while size := sys.stdin.buffer.read(8):
        content = sys.stdin.buffer.read(int.from_bytes(size, "little"))
        print(json.dumps(_reason(content, export, audit["foreign_operations"])), flush=True)


if __name__ == "__main__":
    _main()
