"""Against the real HF transformers: the same ids from the same folder."""

import json

import pytest
import tokenizer_kinds

from ssmkit.text._tokenizer import Tokenizer


transformers = pytest.importorskip("transformers")

TEXTS = ("a be", "", " a  bed", "<s>a", "To be, or not to be: é😀\n")
SETTINGS = (
    {},
    {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"},  # which HF leaves to the tokenizer.json
    {"add_bos_token": False, "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"},
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["byte_fallback", "with_begin"])
@pytest.mark.parametrize("settings", SETTINGS, ids=["no settings", "begin", "end"])
def test_ids_are_those_of_transformers(name, settings, tmp_path):
    tokenizer_kinds.RAW[name]().save(str(tmp_path / "tokenizer.json"))
    content = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(content))
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_file(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.encode(text, special=False) == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
