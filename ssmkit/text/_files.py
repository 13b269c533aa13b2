"""The files of tokenizers, and how they are found."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._config import checks_itself
from .._reading import open_named, read_regular
from ._chat import MORE_TEMPLATES, SETTINGS, SPECIAL_TOKENS, TEMPLATE, ChatFormat, read_chat, read_settings
from ._json import library_errors, parse
from ._sentencepiece import SentencePiece


if TYPE_CHECKING:
    from tokenizers import Tokenizer as RawTokenizer

_JSON, _MODEL = "tokenizer.json", "tokenizer.model"
_MISTRAL = ("tokenizer.model.v7", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1")

TOKENIZERS = (_JSON, _MODEL, *_MISTRAL)
"""The tokenizer files that can be read, in order of preference."""

COMPANIONS = (
    *TOKENIZERS,
    *(SETTINGS, SPECIAL_TOKENS, "added_tokens.json", "vocab.json", "merges.txt", "tekken.json"),
    *("generation_config.json", TEMPLATE, "chat_template.json"),
)
"""The files beside a model's weights and configuration that are copied with them."""

COMPANION_PATTERNS = (f"{MORE_TEMPLATES}/*.jinja",)
"""The patterns of further such files, in folders of their own."""

_LARGEST_ID = 10_000_000
_LARGEST = 256 << 20  # bytes; the largest vocabularies take some 40 MB


@checks_itself
def read_tokenizer(
    source: str | os.PathLike[str], revision: str | None
) -> tuple["RawTokenizer | SentencePiece", ChatFormat]:
    """Read the tokenizer of a folder, of a file or of a model on the hub, as `ssmkit.Tokenizer.from_file` does."""
    path = _find(source, revision)
    content = read_regular(path, _LARGEST)
    settings = read_settings(path.parent)
    chat = read_chat(path.parent, settings)
    if ".model" not in path.name:
        return parse(content, str(path)), chat
    if importlib.util.find_spec("sentencepiece") is None:
        raise ValueError(
            f"{path} is a SentencePiece model, which needs sentencepiece: pip install 'ssmkit[sentencepiece]'"
        )
    begin, end = _added_ends(path, settings)
    with library_errors(f"{path} is not a SentencePiece model"):
        return SentencePiece(content, begin=begin, end=end), chat


def contents(raw: "RawTokenizer | SentencePiece", chat: ChatFormat) -> dict[str, bytes]:
    """The names and contents of the files from which `read_tokenizer` reads both; the tokenizer itself is first."""
    if isinstance(raw, SentencePiece):
        ends = {"add_bos_token": raw.adds_begin, "add_eos_token": raw.adds_end}
        return {_MODEL: raw.content, **dataclasses.replace(chat, settings={**chat.settings, **ends}).contents()}
    largest = max(raw.get_vocab().values(), default=0)
    if largest > _LARGEST_ID:  # the library counts up to it
        raise ValueError(f"a vocabulary with an id of {largest}; {_LARGEST_ID} is the largest")
    return {_JSON: raw.to_str(pretty=True).encode(), **chat.contents()}


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
    return place.fetch((*TOKENIZERS, SETTINGS, SPECIAL_TOKENS, TEMPLATE), patterns=COMPANION_PATTERNS)


def _added_ends(path: Path, settings: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether encoding adds tokens for the beginning and the end of a text, which a SentencePiece model does not say.

    The settings beside the model decide, as in HF transformers; without settings, neither token is added. For Mistral's
    models with a version in their name the beginning is added (`mistral_common` encodes prompts so).

    **Raises:** `ValueError` when the settings cannot be understood.
    """
    found = {"add_bos_token": path.name in _MISTRAL, "add_eos_token": False}
    for key in found:
        value = settings.get(key)
        if not isinstance(value, bool | None):
            raise ValueError(f"`{key}` of {path.with_name(SETTINGS)} must be true or false, got {str(value)[:50]!r}")
        found[key] = found[key] if value is None else value
    return found["add_bos_token"], found["add_eos_token"]


def read_text(path: Path) -> str:
    """Read a UTF-8 file or pipe exactly, with its line endings.

    **Raises:** `ValueError` when the text is not UTF-8, `OSError` when it cannot be read, or is a device or a folder.
    """
    with open_named(path) as file:
        content = file.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None
