"""Reading of `tokenizer.json` with the `tokenizers` library. Every failure of the library becomes one error."""

import base64
import contextlib
import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

# Each step between a text and its ids, and back, may lengthen a text by a factor. Published tokenizers are far below
# this bound; sixty replacements of `a` by `aa`, in a file of a few kilobytes, would fill any memory.
_LARGEST_GROWTH = 10_000.0
_PROBE = "To be, or not to be: 1 + 2\n\té\N{PILE OF POO}"


@contextlib.contextmanager
def library_errors(failure: str) -> Iterator[None]:
    """Turn any exception of a tokenizer's library into one `ValueError`.

    The library raises bare `Exception`. If its Rust code panics, it raises a class that is not an `Exception` and that
    Python cannot import; the panic has then already written its own lines to standard error.

    **Arguments:**

    - `failure`: a description of the action that failed.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{failure}: {reason[:300]}") from None


def parse(content: bytes, name: str) -> "RawTokenizer":
    """Read a `tokenizer.json`, without its truncation and padding.

    **Arguments:**

    - `content`: the content of the file.
    - `name`: the name of the file, for messages.

    **Raises:** `ValueError` when the file cannot be understood, makes the library panic, or lengthens texts without
    bound.
    """
    from tokenizers import Tokenizer as RawTokenizer

    with library_errors(f"{name} is not a tokenizer.json of the tokenizers library"):
        raw = RawTokenizer.from_buffer(content)
        raw.no_truncation()
        raw.no_padding()
        steps = (raw.normalizer, raw.pre_tokenizer, raw.post_processor)
        growth = max(math.prod(map(_growth, map(_description, steps))), _growth(_description(raw.decoder)))
    if growth > _LARGEST_GROWTH:
        raise ValueError(
            f"{name} can make a text {growth:.3g} times as long: no tokenizer needs that, so it is refused"
        )
    # A panic is an error of the file. A text that cannot be encoded may be intended, with a vocabulary of few words.
    with library_errors(f"{name} breaks on an ordinary text"), contextlib.suppress(Exception):
        raw.decode(raw.encode(_PROBE).ids)
    return raw


def _description(step: Any) -> dict[str, Any]:
    """The file's description of one step."""
    return {} if step is None else json.loads(step.__getstate__())


def _growth(step: dict[str, Any]) -> float:
    """A rough upper bound on the factor by which a step can lengthen a text."""
    match step:
        case {"normalizers": parts} | {"pretokenizers": parts} | {"decoders": parts} | {"processors": parts}:
            return math.prod(map(_growth, parts))
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return max(1.0, len(content) / len(pattern))
        case {"type": "Replace" | "Prepend"}:  # a regular expression may match nothing at all
            return 1.0 + len(step.get("content", step.get("prepend", "")))
        case {"type": "Precompiled", "precompiled_charsmap": str(charsmap)}:
            return max(1.0, _longest_replacement(base64.b64decode(charsmap)))
        case {"type": "ByteLevel"}:  # the bytes of a character become characters
            return 4.0
        case {"type": "Metaspace" | "BertNormalizer"}:  # a character more for every character
            return 2.0
        case {"type": "TemplateProcessing", "single": list(parts), "special_tokens": dict(tokens)}:
            special = [part["SpecialToken"]["id"] for part in parts if "SpecialToken" in part]
            ids = sum(len(tokens.get(name, {}).get("ids", ())) for name in special)
            return max(1.0, len(parts) - len(special), ids / 100)  # a hundred around a text are many
    return 1.0


def _longest_replacement(charsmap: bytes) -> int:
    """The length in bytes of the longest text with which a normalisation of sentencepiece replaces a character.

    The normalisation holds the size of a trie in four bytes, the trie, and the texts, each ended by a zero byte
    (`src/normalizer.cc` of google/sentencepiece).
    """
    start = 4 + int.from_bytes(charsmap[:4], "little")
    return max(map(len, charsmap[start:].split(b"\0")))
