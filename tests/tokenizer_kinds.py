"""One small tokenizer of every kind that the `tokenizers` and `sentencepiece` libraries have."""

import io
import pathlib
from collections.abc import Callable

import sentencepiece
from tokenizers import (
    Regex,
    Tokenizer as RawTokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ssmkit.text._tokenizer import Tokenizer


CORPUS = "To be, or not to be: that is the question.\nÊtre ou ne pas être ça\n日本語 😀😃 naïve\n" * 20
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level() -> RawTokenizer:
    raw = Tokenizer.train(CORPUS.splitlines(keepends=True), 400)._raw
    assert isinstance(raw, RawTokenizer)
    raw.add_special_tokens(["<|endoftext|>"])
    return raw


def byte_fallback() -> RawTokenizer:
    """As the tokenizers converted from sentencepiece: a space is `▁`, and decoding drops the one at the beginning."""
    pieces = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdefghij", "▁a"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    raw = RawTokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(steps)
    raw.add_special_tokens(["<s>", "</s>"])
    return raw


def with_begin() -> RawTokenizer:
    """`<s>` before every text, as Llama's and Mistral's."""
    raw = byte_fallback()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return raw


def unigram() -> RawTokenizer:
    raw = RawTokenizer(models.Unigram())
    spaces = normalizers.Replace(Regex(" {2,}"), " ")
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("``", '"'), spaces])
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<unk>", "</s>"], unk_token="<unk>")
    raw.train_from_iterator(CORPUS.splitlines(), trainer)
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return raw


def word_piece() -> RawTokenizer:
    raw = RawTokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.BertNormalizer(lowercase=False), pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(vocab_size=150, special_tokens=["[UNK]", "[CLS]", "[SEP]"])
    raw.train_from_iterator(CORPUS.splitlines(), trainer)
    raw.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return raw


def word_level() -> RawTokenizer:
    raw = RawTokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "to", "be", "or", "not"])}, "?"))
    raw.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.WhitespaceSplit()])
    return raw


RAW: dict[str, Callable[[], RawTokenizer]] = {
    function.__name__: function for function in (byte_level, byte_fallback, with_begin, unigram, word_piece, word_level)
}


def train_sentencepiece(path: pathlib.Path, model_type: str, **settings) -> sentencepiece.SentencePieceProcessor:
    """Train a model, write it, and return what its own library makes of it."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS.splitlines()),
        model_writer=content,
        model_type=model_type,
        minloglevel=2,
        hard_vocab_limit=False,
        num_threads=1,
        **settings,
    )
    path.write_bytes(content.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


LLAMA = {"vocab_size": 340, "byte_fallback": True, "normalization_rule_name": "identity"}
SENTENCEPIECE = {
    "bpe as Llama's": ("bpe", LLAMA | {"remove_extra_whitespaces": False}),
    "unigram as T5's": ("unigram", {"vocab_size": 90, "eos_id": 1, "unk_id": 2, "pad_id": 0, "bos_id": -1}),
    "unigram with bytes": ("unigram", LLAMA),
    "symbols": ("bpe", LLAMA | {"control_symbols": ["<c>"], "user_defined_symbols": ["[INST]", "to be"]}),
    "no dummy prefix": ("bpe", {"vocab_size": 90, "add_dummy_prefix": False}),
    "characters": ("char", {"vocab_size": 90, "normalization_rule_name": "nfkc_cf"}),
}
