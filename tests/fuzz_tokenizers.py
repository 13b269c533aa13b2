"""Kinds of files that tokenizers consist of, for the fuzzer."""

import functools
import json
import pathlib
import random

import tokenizer_kinds
from fuzz import Kind, edited, flipped, json_damage

from ssmkit.text._files import contents
from ssmkit.text._tokenizer import Tokenizer


TEXT = "To be, or not to be: Être ça <s> </s> [SEP] 12 \t\n日本語 ﬁ 😀 `` the  question\0"


def _json(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / "tokenizer.json"
    path.write_bytes(tokenizer_kinds.RAW[name]().to_str().encode())
    return path


def _model(folder: pathlib.Path, name: str) -> pathlib.Path:
    path = folder / "tokenizer.model"
    model_type, settings = tokenizer_kinds.SENTENCEPIECE[name]
    tokenizer_kinds.train_sentencepiece(path, model_type, **settings)
    return path


def _damage(content: bytes, generator: random.Random) -> bytes:
    """A changed copy of a `tokenizer.json`: one time in two its vocabulary, which is most of it, stays as it is."""
    if generator.random() < 0.5:
        return json_damage(content, generator)
    whole = json.loads(content)
    parts = {f'"<{name}>"': json.dumps(whole["model"][name]) for name in ("vocab", "merges") if name in whole["model"]}
    whole["model"] |= {name: f"<{name}>" for name in ("vocab", "merges") if name in whole["model"]}
    text = edited(whole, generator)
    for mark, part in parts.items():
        text = text.replace(mark, part)
    return text.encode("utf-8", "surrogatepass")


def _settings(folder: pathlib.Path) -> pathlib.Path:
    _model(folder, "symbols")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({"add_bos_token": True, "add_eos_token": None, "bos_token": {"content": "<s>"}}))
    return path


def _read(folder: pathlib.Path) -> None:
    """All that is done with a tokenizer."""
    tokenizer = Tokenizer.from_file(folder)
    for text in (TEXT, "", "a" * 2000):
        ids = tokenizer.encode(text)
        tokenizer.encode(text, special=False)
        tokenizer.decode(ids)
        "".join(tokenizer.decode_stream(ids[:100]))
        sum(map(tokenizer.byte_length, ids[:100]))
    tokenizer.decode(range(min(tokenizer.vocab_size + 2, 1000)))
    tokenizer.token_id("</s>")
    contents(tokenizer._raw, tokenizer._chat)


def _kind(name: str, make, damage) -> Kind:
    return Kind(name, functools.partial(make, name=name), _read, damage, (ValueError,))


KINDS = [
    *(_kind(name, _json, _damage) for name in tokenizer_kinds.RAW),
    *(_kind(name, _model, flipped) for name in tokenizer_kinds.SENTENCEPIECE),
    Kind("tokenizer settings", _settings, _read, json_damage, (ValueError,)),
]
