"""Where checkpoints lie: local paths, and models on the hub, which is replaced at its edge."""

import os
import pathlib

import jax
import pytest

from ssmkit.checkpoint import CheckpointError, describe, from_pretrained, locate, save_pretrained
from ssmkit.models import Mamba2, Mamba2Config


pytestmark = pytest.mark.once


CONFIG = Mamba2Config(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=3, head_dim=4)
COMMIT = "0123456789" * 4


@pytest.fixture
def saved(tmp_path):
    save_pretrained(Mamba2(CONFIG, key=jax.random.key(0)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def asked(saved, monkeypatch):
    """What the hub is asked for; it has the one model in every revision."""
    calls = []

    def snapshot_download(repo_id, *, allow_patterns, **keywords):
        calls.append((repo_id, allow_patterns, keywords))
        return str(saved)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return calls


def test_every_file_is_of_the_revision(asked):
    assert from_pretrained("someone/mamba", revision="v1.0").config == CONFIG
    assert describe("someone/mamba", revision="v1.0").config == CONFIG
    assert len(asked) == 4
    assert all((name, keywords) == ("someone/mamba", {"revision": "v1.0"}) for name, _, keywords in asked)
    del asked[:]
    from_pretrained("someone/mamba")
    assert len(asked) == 2 and not any(keywords for *_, keywords in asked)


@pytest.mark.parametrize("part", ["", "model.safetensors"])
def test_a_local_path_has_no_revisions(saved, asked, part):
    for load in (from_pretrained, describe, locate):
        with pytest.raises(CheckpointError, match="`revision` names a version of a model on the hub, got 'main', but"):
            load(saved / part, revision="main")
    assert not asked


@pytest.mark.parametrize("revision", ["", 3, b"main"])
def test_a_revision_is_a_name(asked, revision):
    for load in (from_pretrained, describe, locate):
        with pytest.raises(CheckpointError) as error:
            load("someone/mamba", revision=revision)
        assert str(error.value) == f"`revision` must name a branch, tag or commit, got {revision!r}."
    assert not asked


def test_unknown_revisions_are_named(monkeypatch):
    def snapshot_download(repo_id, **keywords):
        raise OSError("404 Client Error.\n\nRevision Not Found")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(CheckpointError) as error:
        from_pretrained("someone/mamba", revision="v9")
    assert "from the hub at revision `v9` (OSError: 404 Client Error. Revision Not Found)" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_cached_revision_is_found_without_a_network(saved, tmp_path, monkeypatch):
    """By its name and by its commit, with huggingface_hub itself."""
    import huggingface_hub
    from huggingface_hub import constants

    repository = tmp_path / "hub" / "models--someone--mamba"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "v1.0").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    saved.rename(repository / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub._snapshot_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for revision in ("v1.0", COMMIT):
        assert from_pretrained("someone/mamba", revision=revision).config == CONFIG
    with pytest.raises(CheckpointError, match="from the hub at revision `v2`"):
        from_pretrained("someone/mamba", revision="v2")
    with pytest.raises(CheckpointError, match="could not be fetched from the hub"):
        from_pretrained("someone/mamba")


def test_one_file_of_a_place(saved, asked):
    assert locate(saved).file("config.json") == saved / "config.json"
    assert locate(os.fspath(saved / "model.safetensors")).file("config.json") == saved / "config.json"
    assert locate(saved).file("tokenizer.json") is None
    assert not asked
    place = locate("someone/mamba", "v1.0")
    assert place.file("config.json") == saved / "config.json" and place.file("tokenizer.json") is None
    assert asked[-1] == ("someone/mamba", ["tokenizer.json"], {"revision": "v1.0"})


def test_names_of_files_are_no_patterns(saved, asked):
    locate("someone/mamba").fetch(["*", "model[0].bin"])
    assert asked[-1][1] == ["[*]", "model[[]0].bin"]


@pytest.mark.parametrize(
    "source", [None, 3, ["someone/mamba"], "x" * 5000, "/" + "x" * 5000, "someone/mamba/more", "./x", "a b", "", "x\0y"]
)
def test_what_is_no_source(asked, source):
    with pytest.raises(CheckpointError) as error:
        from_pretrained(source)
    assert not asked
    assert len(str(error.value)) < 300
    assert "`source` must be" in str(error.value) or "is neither a folder, a file nor the id" in str(error.value)


def test_what_is_no_folder_of_this_machine_may_be_a_model(asked):
    assert locate("mamba").repo_id == "mamba" and locate("some-one/mamba-2.8b").path is None
    with pytest.raises(CheckpointError, match="is neither"):
        locate(pathlib.Path("someone/mamba"))  # a path is meant as one
