"""The files beside a tokenizer that say how a conversation is written: chat templates, and named special tokens."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._config import checks_itself
from .._reading import read_regular
from .._shown import shown
from ._templates import render


SETTINGS, TEMPLATE, SPECIAL_TOKENS = "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"
MORE_TEMPLATES = "additional_chat_templates"

_LARGEST_SETTINGS = 16 << 20  # bytes
_LARGEST_TEMPLATE = 4 << 20
_DEFAULT, _WITH_TOOLS = "default", "tool_use"
_SPECIAL_TOKEN, _EXTRA = "_token", "extra_special_tokens"
# Names under which the thoughts of a model are passed; templates read the first.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How conversations are written for a tokenizer."""

    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The chat templates by their names; a single one is called `default`."""
    special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The special tokens that have a name, such as `bos_token`. They are variables of every template."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The content of `tokenizer_config.json`."""

    @property
    def template(self) -> str | None:
        """The default template; `None` if there is none."""
        return self.templates.get(_DEFAULT)

    @checks_itself
    def with_template(self, template: str) -> "ChatFormat":
        """The same with this template alone."""
        if not isinstance(template, str):
            raise ValueError(f"`template` must be a text, got {shown(template)}.")
        return dataclasses.replace(self, templates={_DEFAULT: template})

    @checks_itself
    def text(
        self,
        messages: Any,
        *,
        prompt: bool,
        tools: Any,
        template: str | None,
        variables: Mapping[str, Any],
    ) -> str:
        """As `Tokenizer.apply_chat_template`."""
        if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
            raise ValueError(f"`messages` must be a list of at least one message, got {shown(messages)}.")
        conversation = [_message(f"`messages[{i}]`", message) for i, message in enumerate(messages)]
        given = {"messages": conversation, "tools": _tools(tools), "documents": None}
        given["add_generation_prompt"] = prompt
        named = {name: _plain(f"`{name}`", value) for name, value in variables.items()}
        return render(self._chosen(template, tools), {**given, **self.special_tokens, **named})

    def contents(self) -> dict[str, bytes]:
        """The files from which `read_chat` reads this again, by their names."""
        settings, files = {**self.settings}, {}
        named = _special_tokens(settings)
        settings |= {name: text for name, text in self.special_tokens.items() if named.get(name) != text}
        if self.templates.keys() == {_DEFAULT}:
            files[TEMPLATE] = self.templates[_DEFAULT].encode()
        elif self.templates:
            settings["chat_template"] = [{"name": name, "template": text} for name, text in self.templates.items()]
        if settings:
            files[SETTINGS] = json.dumps(settings, indent=2, ensure_ascii=False).encode("utf-8", "surrogatepass")
        return files

    @checks_itself
    def _chosen(self, template: str | None, tools: Any) -> str:
        """The template of a name or with a text; without either the one for tools, or else the default."""
        if template is None:
            name = _WITH_TOOLS if tools is not None and _WITH_TOOLS in self.templates else _DEFAULT
            if name in self.templates:
                return self.templates[name]
            known = f"it names none as `default`, only {sorted(self.templates)}" if self.templates else "it has none"
            raise ValueError(
                f"the tokenizer's files must have a chat template, but {known}: pass `chat_template=`, or put a "
                f"{TEMPLATE} beside the tokenizer."
            )
        if not isinstance(template, str):
            raise ValueError(f"`chat_template` must be a text, or the name of a template, got {shown(template)}.")
        if template not in self.templates and "{" not in template:
            raise ValueError(
                f"`chat_template` must be a template, or one of {sorted(self.templates)}, got {shown(template)}."
            )
        return self.templates.get(template, template)


def read_settings(folder: Path) -> dict[str, Any]:
    """The content of `tokenizer_config.json`; empty if there is none.

    **Raises:** `ValueError` when it cannot be understood, `OSError` when it is no regular file, or too large.
    """
    return _read_object(folder / SETTINGS)


def read_chat(folder: Path, settings: Mapping[str, Any]) -> ChatFormat:
    """Read the chat templates and special tokens of a tokenizer as HF transformers 5 does.

    Files of templates replace the templates in the settings.

    **Arguments:**

    - `folder`: the folder with the files.
    - `settings`: the content of `tokenizer_config.json` there.

    **Raises:** as `read_settings`.
    """
    rest = {name: value for name, value in settings.items() if name != "chat_template"}
    named = _special_tokens(rest)
    if "added_tokens_decoder" not in rest:  # else the settings are newer than the map
        named |= _special_tokens(_read_object(folder / SPECIAL_TOKENS))
    files = {_DEFAULT: folder / TEMPLATE} if (folder / TEMPLATE).exists() else {}
    files |= {path.stem: path for path in sorted((folder / MORE_TEMPLATES).glob("*.jinja"))}
    templates = {name: read_template(path) for name, path in files.items()}
    return ChatFormat(templates or _templates(settings.get("chat_template"), folder / SETTINGS), named, rest)


def read_template(path: Path) -> str:
    """Read a file with a chat template.

    **Raises:** `ValueError` when it is not UTF-8, `OSError` when it is no regular file, or larger than 4 MiB.
    """
    try:
        # As a text file is read: a line ends with one character.
        return read_regular(path, _LARGEST_TEMPLATE).decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(read_regular(path, _LARGEST_SETTINGS))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must be a JSON object, got {type(content).__name__}")
    return content


def _templates(given: Any, path: Path) -> dict[str, str]:
    """The templates by name, of one text or of a list of named ones."""
    if given is None:
        return {}
    entries = given if isinstance(given, list) else [{"name": _DEFAULT, "template": given}]
    found = {}
    for entry in entries:
        match entry:
            case {"name": str(name), "template": str(template)}:
                found[name] = template
            case _:
                raise ValueError(
                    f"`chat_template` of {path} must be a text, or a list of objects with a `name` and a `template`, "
                    f"got {shown(given)}"
                )
    return found


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a name, as texts."""
    extra = settings.get(_EXTRA)
    named = {name: value for name, value in settings.items() if name.endswith(_SPECIAL_TOKEN)}
    named |= extra if isinstance(extra, dict) else {}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _message(what: str, given: Any) -> dict[str, Any]:
    """A message without the entries that hold nothing, and with the model's thoughts under the name templates read."""
    if not isinstance(given, Mapping) or not isinstance(given.get("role"), str):
        raise ValueError(f"{what} must be an object with a text as its `role`, got {shown(given)}.")
    message = {name: value for name, value in _plain(what, given).items() if value is not None}
    thoughts = next((message[name] for name in _THOUGHTS if name in message), None)
    return message if thoughts is None else {"thinking": thoughts, **message, "reasoning_content": thoughts}


def _tools(tools: Any) -> Any:
    if tools is None:
        return None
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise ValueError(f"`tools` must be a list of JSON schemas, one per tool, got {shown(tools)}.")
    return [_plain(f"`tools[{i}]`", tool) for i, tool in enumerate(tools)]


def _plain(what: str, value: Any) -> Any:
    """A copy of plain data, which has no methods of its own that a template could call.

    **Raises:** `ValueError` for anything else.
    """
    try:
        return _copied(value)
    except TypeError as error:
        raise ValueError(
            f"{what} must consist of texts, numbers, booleans, lists and dictionaries, got {error}."
        ) from None
    except RecursionError:
        raise ValueError(f"{what} nests too deeply.") from None


_SCALARS = (bool, str, int, float)


def _copied(value: Any, depth: int = 100) -> Any:
    if depth == 0:
        raise RecursionError
    if value is None or type(value) in _SCALARS:
        return value
    for kind in _SCALARS[1:]:
        if isinstance(value, kind):  # an enumeration, say
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_copied(name, depth - 1): _copied(entry, depth - 1) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        entries = [_copied(entry, depth - 1) for entry in value]
        return tuple(entries) if isinstance(value, tuple) else entries
    raise TypeError(shown(value))
