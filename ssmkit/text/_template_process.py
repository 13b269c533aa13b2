"""The program of the process in which chat templates run. `_templates.py` starts it; it imports nothing of the package.

A request is its length, in eight bytes, and an object in the form of `marshal`. The first is a list of folders of
modules; every other is a tuple of a template and its variables. An answer is a letter, a length, and a text.
"""

import functools
import io
import json
import marshal
import signal
import sys
from datetime import datetime
from typing import Any


_LARGEST_TEXT = 64 << 20  # characters
_MEMORY = 2 << 30  # bytes
_LONGEST_REASON = 500


def main() -> None:
    """Answer requests until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    sys.path += _next(requests)
    compiled = functools.lru_cache(environment().from_string)
    _bound_memory()
    while (request := _next(requests)) is not None:
        letter, text = answer(compiled, *request)
        content = text.encode("utf-8", "surrogatepass")
        answers.write(letter + len(content).to_bytes(8, "little") + content)
        answers.flush()


def answer(compiled: Any, template: str, variables: dict[str, Any]) -> tuple[bytes, str]:
    """The rendered text after `+`, the message of a template that refuses after `!`, or an error after `-`."""
    from jinja2 import TemplateSyntaxError

    text = io.StringIO()
    try:
        for piece in compiled(template).generate(variables):
            if text.tell() + len(piece) > _LARGEST_TEXT:
                return b"-", f"its text is longer than {_LARGEST_TEXT:,} characters"
            text.write(piece)
        return b"+", text.getvalue()
    except MemoryError:
        return b"-", f"it takes more than {_MEMORY >> 30} GiB of memory"
    except RecursionError:
        return b"-", "it nests too deeply"
    except TemplateSyntaxError as error:
        return b"-", f"line {error.lineno}: {_reason(error)}"
    except Exception as error:
        return b"!" if type(error).__name__ == "Refusal" else b"-", _reason(error)


def environment() -> Any:
    """The environment of chat templates, with the functions and settings that HF transformers 5.23 gives them."""
    import jinja2.exceptions
    import jinja2.ext
    import jinja2.sandbox
    from jinja2 import nodes
    from jinja2.utils import Namespace

    class Refusal(jinja2.TemplateError):
        """The error of a template that calls `raise_exception`."""

    class Generation(jinja2.ext.Extension):
        """The tag around what the model has said, which leaves the text unchanged."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            """The tag as a call of a block, so that names set inside are not seen outside."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

        def _unchanged(self, caller: Any) -> str:
            return caller()

    class Dict:
        """Python's `dict`, without its attributes."""

        def __call__(self, *items: Any, **named: Any) -> dict[Any, Any]:
            return dict(*items, **named)

        def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
            return dict.fromkeys(keys, value)

    class PublicNamespace(Namespace):
        """A namespace without names that begin with an underscore."""

        def __init__(*items: Any, **named: Any):  # a name may be `self`
            own, *rest = items
            values = dict(*rest, **named)
            for name in values:
                _check_public(name)
            Namespace.__init__(own, values)

        def __setitem__(self, name: str, value: Any) -> None:
            _check_public(name)
            super().__setitem__(name, value)

    def _check_public(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace has no name such as {name!r}: no underscore begins it")

    def raise_exception(message: Any) -> None:
        raise Refusal(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = tojson
    found.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": PublicNamespace,
    }
    return found


def _next(requests: Any) -> Any:
    """The next request; `None` at the end."""
    length = requests.read(8)
    return marshal.loads(requests.read(int.from_bytes(length, "little"))) if len(length) == 8 else None


def _reason(error: Exception) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    return " ".join(text[: 10 * _LONGEST_REASON].split())[:_LONGEST_REASON] or type(error).__name__


def _bound_memory() -> None:
    """Bound the memory of this process, where the system can."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    except (ImportError, OSError, ValueError):
        pass


if __name__ == "__main__":
    main()
