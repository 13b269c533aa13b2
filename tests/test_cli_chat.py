"""`ssmkit chat`."""

import io
import signal

import pytest

from ssmkit.cli import _chat


TEMPLATE = """{% for m in messages %}{{ m.role }}: {{ m.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""
REFUSING = "{% if messages | length > 2 %}{{ raise_exception('enough') }}{% endif %}" + TEMPLATE


@pytest.fixture
def talk(run, checkpoint, tmp_path, monkeypatch):
    """Talk with the checkpoint: exit code, standard output, standard error."""

    def talk(lines, *words, template=TEMPLATE, stdin=lambda lines: io.TextIOWrapper(io.BytesIO(lines.encode()))):
        (tmp_path / "template.jinja").write_text(template)
        monkeypatch.setattr("sys.stdin", stdin(lines))
        options = ["--chat-template", tmp_path / "template.jinja", "--max-new-tokens", 4, "-t", 0]
        return run("chat", "--model", checkpoint, *options, *words)

    return talk


class Terminal(io.StringIO):
    def isatty(self):
        return True


def numbers(line):
    return [int(word) for word in line.split() if word.isdecimal()]


def test_each_line_is_a_turn(talk):
    code, out, err = talk("To be?\n\nOr\\nnot\n")
    assert code == 0 and out.endswith("\n")
    *_, last, total, restarts, caches, device = err.splitlines()
    assert last.startswith("last turn") and total.startswith("all turns") and restarts.split() == ["restarts", "0"]
    prefilled, reused, generated = numbers(last)
    first = numbers(talk("To be?\n")[2])[0]
    assert first <= reused <= first + 4 and generated == 4
    assert numbers(total) == [first + prefilled, reused, 8]
    assert caches.startswith("caches") and device.split()[0] == "device"


def test_commands(talk):
    code, out, err = talk("To be?\n/stats\n/reset\nTo be?\n/system Be brief.\nTo be?\n/help\n/exit\nNever\n")
    assert code == 0
    assert numbers(err.splitlines()[0])[1:] == [0, 4]
    answers = talk("To be?\n")[1]
    assert out.startswith(answers + answers)
    final = err.splitlines()[-5:]
    assert numbers(final[1])[2] == 12 and final[2].split() == ["restarts", "2"]
    system = talk("To be?\n", "--system", "Be brief.")[1]
    assert out == answers + answers + system
    assert "/system TEXT" in err


def test_an_unknown_command_and_a_message_that_the_template_refuses(talk):
    code, out, err = talk("/rest\n")
    assert (code, out) == (2, "") and "/rest is no command: /reset, /system" in err
    code, out, err = talk("To be?\nOr not?\n", template=REFUSING)
    assert code == 2 and out and "enough" in err


def test_without_a_template(run, checkpoint, monkeypatch):
    for words, name in [((), "the embedded model"), (("--model", checkpoint), f"`{checkpoint}`")]:
        code, out, err = run("chat", *words)
        assert (code, out) == (2, "")
        assert err == (
            f"error: {name} has no chat template, which says how turns become text: pass --chat-template FILE\n"
        )


def test_a_terminal_goes_on_after_mistakes(talk):
    code, out, err = talk("/rest\nTo be?\nOr not?\n/stats\n", template=REFUSING, stdin=Terminal)
    assert code == 0 and out.count("> ") == 5
    assert "error: /rest is no command" in err and "enough" in err and "4 generated" in err


@pytest.fixture
def on_a_terminal():
    """What Ctrl-C does in a terminal; a shell's background jobs are started so that they ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("presses, generated", [(1, 5), (2, 4)])
def test_ctrl_c_ends_an_answer_and_another_forgets_the_turn(talk, monkeypatch, on_a_terminal, presses, generated):
    """It comes with the first piece of the first answer, which is a dispatch of one token; the next is not begun."""
    left, write = [signal.SIGINT] * presses, _chat._write

    def pressed(piece):
        write(piece)
        while left:
            signal.raise_signal(left.pop())

    monkeypatch.setattr(_chat, "_write", pressed)
    code, _, err = talk("To be?\nOr not?\n/stats\n", stdin=Terminal)
    assert code == 0 and signal.getsignal(signal.SIGINT) is on_a_terminal
    assert ("This turn is forgotten." in err) == (presses == 2)
    assert f"{generated} generated" in err.splitlines()[-3]
