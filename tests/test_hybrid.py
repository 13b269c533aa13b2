"""A hybrid written as a configuration: trained, killed, resumed, saved, loaded, generated from and exported."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TEXT, own_cache, run  # noqa: F401
from helpers import trees_equal_bitwise

import ssmkit
from ssmkit.training._state import States


CONFIGURATION = """[model]
model_type = "ssmkit"
hidden_size = 16
norm_eps = 1e-6
layers = [
  { mixer = "gla", num_heads = 2 },
  { mixer = "gated_mlp", intermediate_size = 24 },
  { mixer = "attention", num_heads = 2, sliding_window = 6 },
  { mixer = "rg_lru", num_heads = 2 },
  { mixer = "gated_mlp", intermediate_size = 24 },
  { mixer = "attention", num_heads = 2 },
]
[training]
vocab_size = 262
steps = 6
batch_size = 2
context = 16
checkpoint_every = 2
log_every = 1
evaluate_every = 6
"""


class Killed(BaseException):
    """What no handler expects."""


@pytest.fixture
def command(tmp_path):
    (tmp_path / "train.txt").write_text(TEXT * 20, encoding="utf-8")
    (tmp_path / "valid.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "hybrid.toml").write_text(CONFIGURATION)
    files = [word for name in ("train", "valid") for word in (f"--{name}", tmp_path / f"{name}.txt")]
    return lambda out: ["train", *files, "--out", tmp_path / out, "--config", tmp_path / "hybrid.toml"]


@eqx.filter_jit
def logits_of(model, tokens):
    return model(tokens)


def uncached(model, prompt, count):
    """Greedy tokens, each from all before it; what follows is padding, which changes nothing before it."""
    tokens, time = np.zeros(32, np.int32), len(prompt)
    tokens[:time] = prompt
    for last in range(time - 1, time - 1 + count):
        tokens[last + 1] = int(jnp.argmax(logits_of(model, jnp.asarray(tokens))[last]))
    return tokens[time : time + count].tolist()


def test_trained_killed_resumed_loaded_generated_and_exported(run, command, tmp_path, monkeypatch):  # noqa: F811
    code, _, err = run(*command("whole"))
    assert code == 0, err

    save = States.save

    def save_and_die(states, state):
        save(states, state)
        if int(state.step) == 4:
            raise Killed

    monkeypatch.setattr(States, "save", save_and_die)
    with pytest.raises(Killed):
        run(*command("killed"))
    monkeypatch.setattr(States, "save", save)
    code, _, err = run(*command("killed"))
    # What the killed run had told is captured too: no step was done twice.
    assert code == 0 and [line.split()[0] for line in err.splitlines()] == [f"{step}/6" for step in range(1, 7)]
    model, resumed = (ssmkit.from_pretrained(tmp_path / name) for name in ("whole", "killed"))
    assert trees_equal_bitwise(model, resumed)
    assert [type(block.mixer).__name__ for block in model.blocks[::2]] == ["GLAMixer", "AttentionMixer", "GatedMLP"]

    report = json.loads(run("inspect", tmp_path / "whole", "--json")[1])
    # Of attention, the full one keeps 2 keys and values of 8 features in float32 for every token.
    assert report["cache_bytes_per_token"] == 2 * 2 * 8 * 4 and report["config"]["layers"][0]["mixer"] == "gla"

    prompts, count = [[5, 1, 4], [7], [*range(1, 18)]], 9
    expected = [uncached(model, prompt, count) for prompt in prompts]
    assert np.asarray(ssmkit.generate(model, prompts, max_new_tokens=count).tokens).tolist() == expected

    ssmkit.save_pretrained(model, tmp_path / "again")
    assert trees_equal_bitwise(ssmkit.from_pretrained(tmp_path / "again"), model)
    ssmkit.save_exported(model, tmp_path / "artefact", platforms=[jax.default_backend()], context=64)
    artefact = ssmkit.load_exported(tmp_path / "artefact")
    assert np.asarray(ssmkit.generate(artefact, prompts, max_new_tokens=count).tokens).tolist() == expected


def test_the_configuration_is_short():
    assert len(CONFIGURATION.splitlines()) <= 20
