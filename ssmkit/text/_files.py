"""The files of tokenizers, and how they are found."""

import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .._config import checks_itself
from .._reading import read_regular
from ._json import library_errors, parse
from ._sentencepiece import SentencePiece


if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

_JSON, _MODEL, _SETTINGS = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
_MISTRAL = ("tokenizer.model.v7", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1")

TOKENIZERS = (_JSON, _MODEL, *_MISTRAL)
"""The tokenizer files that can be read, in order of preference."""

COMPANIONS = (
    *TOKENIZERS,
    *(_SETTINGS, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tekken.json"),
    *("generation_config.json", "chat_template.jinja", "chat_template.json"),
)
"""The files beside a model's weights and configuration that are copied with them."""

_LARGEST_ID = 10_000_000
_LARGEST = 256 << 20  # bytes; the largest vocabularies take some 40 MB
_LARGEST_SETTINGS = 16 << 20


@checks_itself
def read_tokenizer(source: str | os.PathLike[str], revision: str | None) -> "RawTokenizer | SentencePiece":
    """Read the tokenizer of a folder, of a file or of a model on the hub, as `ssmkit.Tokenizer.from_file` does."""
    path = _find(source, revision)
    content = read_regular(path, _LARGEST)
    if ".model" not in path.name:
        return parse(content, str(path))
    if importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            f"{path} is a SentencePiece model, which needs sentencepiece: pip install 'ssmkit[sentencepiece]'"
        )
    begin, end = _added_ends(path)
    with library_errors(f"{path} is not a SentencePiece model"):
        return SentencePiece(content, begin=begin, end=end)


def contents(raw: "RawTokenizer | SentencePiece") -> dict[str, bytes]:
    """The names and contents of the files from which `read_tokenizer` reads `raw`; the tokenizer itself is first."""
    if isinstance(raw, SentencePiece):
        settings = {"add_bos_token": raw.adds_begin, "add_eos_token": raw.adds_end}
        return {_MODEL: raw.content, _SETTINGS: json.dumps(settings, indent=2).encode()}
    largest = max(raw.get_vocab().values(), default=0)
    if largest > _LARGEST_ID:  # the library counts up to it
        raise ValueError(f"a vocabulary with an id of {largest}; {_LARGEST_ID} is the largest")
    return {_JSON: raw.to_str(pretty=True).encode()}


@checks_itself
def _find(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The file to read, fetched from the hub if necessary.

    **Raises:** `FileNotFoundError` when there is no such file, `CheckpointError` when the hub cannot be reached.
    """
    if revision is None and isinstance(source, str | os.PathLike) and os.path.exists(source):
        place = Path(os.fsdecode(source))
        if not place.is_dir():
            return place  # reading will tell what it is
        folder = place
    else:
        place, folder = source, _fetch(source, revision)
    for name in TOKENIZERS:
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(f"no tokenizer at {place}: put the model's {_JSON} or {_MODEL} there")


@checks_itself
def _fetch(source: str | os.PathLike[str], revision: str | None) -> Path:
    """The folder of a model on the hub.

    **Raises:** `FileNotFoundError` when the source can only be a path, `CheckpointError` when the hub is unreachable.
    """
    from ..checkpoint import CheckpointError, locate

    local = isinstance(source, str | os.PathLike) and revision is None
    problem = f"no tokenizer at {str(source)[:200]}: name a {_JSON}, its folder, or a model on the Hugging Face hub"
    if local and os.path.basename(os.fsdecode(source)) in TOKENIZERS:
        raise FileNotFoundError(problem)
    try:
        place = locate(source, revision)
    except CheckpointError:
        if not local:
            raise
        raise FileNotFoundError(problem) from None
    return place.fetch((*TOKENIZERS, _SETTINGS))


def _added_ends(path: Path) -> tuple[bool, bool]:
    """Whether encoding adds tokens for the beginning and the end of a text, which a SentencePiece model does not say.

    The settings beside the model decide, as in HF transformers; without settings, neither token is added. For Mistral's
    models with a version in their name the beginning is added (`mistral_common` encodes prompts so).

    **Raises:** `ValueError` when the settings cannot be understood.
    """
    file = path.with_name(_SETTINGS)
    found = {"add_bos_token": path.name in _MISTRAL, "add_eos_token": False}
    if file.exists():
        try:
            settings = json.loads(read_regular(file, _LARGEST_SETTINGS))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from None
        if not isinstance(settings, dict):
            raise ValueError(f"{file} must be a JSON object, got {type(settings).__name__}")
        for key in found:
            value = settings.get(key)
            if not isinstance(value, bool | None):
                raise ValueError(f"`{key}` of {file} must be true or false, got {str(value)[:50]!r}")
            found[key] = found[key] if value is None else value
    return found["add_bos_token"], found["add_eos_token"]
