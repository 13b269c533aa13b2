"""Chat templates: what they render, where they are found, and that a hostile one does nothing."""

import itertools
import json
import os

import pytest
import tokenizer_kinds
from chat_templates import ALTERNATING, CHATML, CONVERSATIONS, SETTINGS, SYSTEM, TEMPLATES, TOOL, USER

from ssmkit.text import _template_process, _templates
from ssmkit.text._tokenizer import Tokenizer


pytestmark = pytest.mark.once

OPTIONS = (
    {},
    {"add_generation_prompt": False},
    {"tools": [TOOL], "enable_thinking": False},
    {"documents": [{"title": "t", "text": "x"}], "bos_token": "<begin>"},
)


@pytest.fixture
def folder(tmp_path):
    tokenizer_kinds.RAW["with_begin"]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(SETTINGS))
    return tmp_path


def put(folder, template, **settings):
    (folder / "tokenizer_config.json").write_text(json.dumps(SETTINGS | settings | {"chat_template": template}))


def ours(tokenizer, *arguments, **keywords):
    try:
        return tokenizer.apply_chat_template(*arguments, **keywords)
    except ValueError as error:
        return f"refused: {error}"


# Against the real HF transformers.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TEMPLATES)
def test_texts_are_those_of_transformers(name, folder):
    """And so are ids, which have each special token once."""
    transformers = pytest.importorskip("transformers")
    put(folder, TEMPLATES[name])
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<pad>", "bos_token": {"content": "<s>"}}))
    theirs, tokenizer = transformers.AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(folder)
    assert theirs.special_tokens_map == dict(tokenizer.special_tokens)
    refused = 0
    for messages, options in itertools.product(CONVERSATIONS.values(), OPTIONS):
        options = {"add_generation_prompt": True} | options
        found = ours(tokenizer, messages, **options)
        try:
            expected = theirs.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:
            refused += 1
            assert found.startswith("refused: the chat template ") and str(error) in found
            continue
        assert found == expected
        if name == "thinking":  # it writes tokens of the settings, which transformers adds
            continue
        ids = theirs.apply_chat_template(messages, return_dict=False, **options)
        assert tokenizer.encode_chat(messages, **options) == ids
    assert (refused > 0) == (name != "thinking")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["file", "string", "list", "folder", "all"])
def test_templates_are_found_where_transformers_finds_them(kind, folder, tmp_path_factory):
    """What is saved is the same for both, also in the place of another tokenizer's."""
    transformers = pytest.importorskip("transformers")
    if kind in ("string", "all"):
        put(folder, "config {{ messages[0].content }}")
    if kind == "list":
        put(
            folder, [{"name": "default", "template": "named"}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
        )
    if kind in ("file", "all"):
        (folder / "chat_template.jinja").write_text("file {{ eos_token }}\n\n")
    if kind in ("folder", "all"):
        (folder / "additional_chat_templates").mkdir()
        (folder / "additional_chat_templates" / "rag.jinja").write_text("rag")
        (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools{{ tools | length }}")
    copy = tmp_path_factory.mktemp("copy")
    Tokenizer.from_file(folder).save(copy)
    for place in (folder, copy):
        theirs, tokenizer = transformers.AutoTokenizer.from_pretrained(place), Tokenizer.from_file(place)
        assert theirs.special_tokens_map == dict(tokenizer.special_tokens)
        for options in ({}, {"tools": [TOOL]}, {"chat_template": "rag"} if kind in ("folder", "all") else {}):
            try:
                expected = theirs.apply_chat_template([USER], tokenize=False, **options)
            except ValueError:
                assert kind == "folder" and not options
                with pytest.raises(ValueError, match=r"names none as `default`, only \['rag', 'tool_use'\]"):
                    tokenizer.apply_chat_template([USER], **options)
                continue
            assert tokenizer.apply_chat_template([USER], **options) == expected


# Without transformers.


def test_golden(folder):
    put(folder, CHATML)
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.chat_template == CHATML
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "image_token": "<image>"}
    assert tokenizer.apply_chat_template([USER]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  To be?\n<|im_end|>\n<|im_start|>assistant\n"
    )
    text = tokenizer.apply_chat_template([SYSTEM], tools=[TOOL], add_generation_prompt=False)
    assert text.startswith(
        '<|im_start|>system\n{"type": "function", "function": {"name": "now", "description": "Time in <b>'
    )
    assert text.endswith("<|im_start|>system\nBe <b>bold</b> & é😀.<|im_end|>\n")
    other = tokenizer.with_chat_template(ALTERNATING)
    assert tokenizer.chat_template == CHATML
    expected = "<s>[INST] <SYS>Be <b>bold</b> & é😀.</SYS> To be? [/INST]<think>Hm</think> Not to be.</s>"
    assert other.apply_chat_template(CONVERSATIONS["turns"][:3]) == expected
    ids = other.encode_chat([USER])
    assert ids == other.encode("<s>[INST] To be? [/INST]", special=False) and ids.count(1) == 1
    assert other.encode(other.apply_chat_template([USER]))[:2] == [1, 1]  # which is why
    with pytest.raises(ValueError, match="^the chat template refuses this conversation: Conversation roles must alt"):
        other.apply_chat_template([USER, USER])


def test_a_saved_tokenizer_keeps_its_chat(folder, tmp_path_factory):
    (folder / "chat_template.jinja").write_bytes("é{{ bos_token }}\r\n".encode())
    (folder / "special_tokens_map.json").write_text('{"sep_token": "<sep>"}')
    copy = tmp_path_factory.mktemp("copy")
    tokenizer = Tokenizer.from_file(folder)
    tokenizer.save(copy)
    again = Tokenizer.from_file(copy / "tokenizer.json")
    assert again.chat_template == tokenizer.chat_template == "é{{ bos_token }}\n"
    assert again.special_tokens == tokenizer.special_tokens and again.special_tokens["sep_token"] == "<sep>"
    assert json.loads((copy / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    alone = Tokenizer(tokenizer_kinds.byte_level())
    assert alone.chat_template is None and list(alone.files()) == ["tokenizer.json"]


def test_no_template(folder):
    tokenizer = Tokenizer.from_file(folder)
    with pytest.raises(ValueError, match="must have a chat template, but it has none: pass `chat_template=`, or put a"):
        tokenizer.apply_chat_template([USER])
    assert tokenizer.apply_chat_template([USER], chat_template="{{ bos_token }}") == "<s>"
    with pytest.raises(ValueError, match=r"must be a template, or one of \[\], got 'tool_use'"):
        tokenizer.apply_chat_template([USER], chat_template="tool_use")


@pytest.mark.parametrize(
    ("messages", "more", "problem"),
    [
        ([], {}, "`messages` must be a list of at least one message"),
        ("Hi", {}, "`messages` must be a list"),
        ([USER, "Hi"], {}, r"`messages\[1\]` must be an object with a text as its `role`, got 'Hi'"),
        ([{"content": "Hi"}], {}, r"`messages\[0\]` must be"),
        ([USER | {"image": object()}], {}, r"`messages\[0\]` must consist of texts, .* got <object"),
        ([USER], {"tools": [print]}, "`tools` must be a list of JSON schemas"),
        ([USER], {"date": os}, "`date` must consist of"),
        ([USER], {"chat_template": 3}, "`chat_template` must be a text"),
    ],
)
def test_mistaken_conversations(folder, messages, more, problem):
    put(folder, "{{ messages }}")
    with pytest.raises(ValueError, match=problem):
        Tokenizer.from_file(folder).apply_chat_template(messages, **more)


def test_a_conversation_that_holds_itself(folder):
    message = dict(USER)
    message["more"] = message
    with pytest.raises(ValueError, match="nests too deeply"):
        Tokenizer.from_file(folder).apply_chat_template([message], chat_template="{}")


@pytest.mark.parametrize("template", [3, {"default": "x"}, [{"name": "x"}], ["x"], True])
def test_damaged_settings(folder, template):
    put(folder, template)
    with pytest.raises(ValueError, match="`chat_template` of .*tokenizer_config.json must be a text, or a list"):
        Tokenizer.from_file(folder)


def test_damaged_files(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="chat_template.jinja is not UTF-8 text"):
        Tokenizer.from_file(folder)
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_config.json cannot be read"):
        Tokenizer.from_file(folder)


# Hostile templates.


HOSTILE = {
    "classes": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "attributes by filter": ("{{ ('' | attr('__class__')).x }}", "unsafe|no attribute"),
    "format strings": ("{{ '{0.__class__.x}'.format('') }}", "unsafe"),
    "globals of a function": ("{{ raise_exception.__globals__.x }}", "unsafe"),
    "a frame of a generator": ("{{ (messages | map('upper')).gi_frame.x }}", "unsafe"),
    "the template itself": ("{{ self.__init__.__globals__ }}", "unsafe"),
    "names of a namespace": ("{% set ns = namespace(__class__=1) %}", "no underscore begins it"),
    "another file": ("{% include '/etc/passwd' %}", "."),
    "changes to a message": ("{{ messages.append(1) }}", "unsafe|not safely callable"),
    "a huge range": ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests too deeply"),
    "brackets": ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "."),
    "a huge text": ("{{ 'a' * 10 ** 10 }}", "memory"),
    "a huge output": ("{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}", "longer than 67,108,864 characters"),
    "no jinja": ("{% for %}", "line 1: "),
    "an unknown filter": ("{{ 1 | nonsense }}", "line 1: No filter named"),
    "a long message": ("{{ raise_exception('a' * 10 ** 6) }}", "aaaa"),
    "control characters": ("{{ raise_exception('\\x1b[2J') }}", r"\\x1b\[2J"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_are_refused(folder, name):
    template, problem = HOSTILE[name]
    tokenizer = Tokenizer.from_file(folder)
    with pytest.raises(ValueError, match=problem) as error:
        tokenizer.apply_chat_template([USER], chat_template=template)
    assert str(error.value).startswith("the chat template ") and len(str(error.value)) < 600
    assert len(str(error.value).splitlines()) == 1
    assert tokenizer.apply_chat_template([USER], chat_template="{{ bos_token }}") == "<s>"


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 9 ** (9 ** 9) }}"],
)
def test_endless_templates_end(folder, template, monkeypatch):
    """In loops, and inside one operation, also while the template is compiled."""
    tokenizer = Tokenizer.from_file(folder)
    assert tokenizer.apply_chat_template([USER], chat_template="{{ eos_token }}") == "</s>"  # the process has started
    monkeypatch.setattr(_templates, "_SECONDS", 0.5)
    with pytest.raises(ValueError, match="takes more than 0.5 seconds, or more memory than a template may have"):
        tokenizer.apply_chat_template([USER], chat_template=template)
    monkeypatch.undo()
    assert tokenizer.apply_chat_template([USER], chat_template="{{ eos_token }}") == "</s>"


def test_a_process_that_dies_is_replaced(folder):
    tokenizer = Tokenizer.from_file(folder)
    tokenizer.apply_chat_template([USER], chat_template="{{ eos_token }}")
    (process,) = _templates._running
    process._process.kill()
    process._process.wait()
    with pytest.raises(ValueError, match="cannot be rendered"):
        tokenizer.apply_chat_template([USER], chat_template="{{ eos_token }}")
    assert tokenizer.apply_chat_template([USER], chat_template="{{ eos_token }}") == "</s>"


def test_what_the_process_answers():
    """As in its process, where no coverage and no debugger sees it."""
    compiled = _template_process.environment().from_string
    assert _template_process.answer(compiled, "{{ x }}", {"x": "é"}) == (b"+", "é")
    assert _template_process.answer(compiled, "{{ raise_exception(x) }}", {"x": "no"}) == (b"!", "no")
    assert _template_process.answer(compiled, "{{ 1 + x }}", {"x": "no"})[0] == b"-"
