"""Damaged files of every kind that is read: only documented errors, within bounds of time and memory."""

import fuzz_caches
import fuzz_checkpoints
import fuzz_tokenizers
import fuzz_training
import pytest
from fuzz import Kind, fuzz


pytestmark = pytest.mark.once


# A module per kind of user: each has a list `KINDS`.
KINDS = [*fuzz_checkpoints.KINDS, *fuzz_caches.KINDS, *fuzz_training.KINDS]
ALL_KINDS = [*KINDS, *fuzz_tokenizers.KINDS]
KINDS += [kind for kind in fuzz_tokenizers.KINDS if kind.name in ("with_begin", "bpe as Llama's", "tokenizer settings")]


def each_kind(kinds: list[Kind]):
    """Parametrize `kind` with readable ids."""
    return pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in kinds])


@each_kind(KINDS)
def test_damaged_files_give_documented_errors(kind: Kind, tmp_path):
    (tmp_path / "files").mkdir()
    report = fuzz(kind, tmp_path / "files", 100)
    assert not report.failures
    assert report.errors


@pytest.mark.slow
@each_kind(ALL_KINDS)
def test_many_damaged_files_give_documented_errors(kind: Kind, tmp_path):
    """Run by hand, with `-m slow -s`: the figures are printed."""
    (tmp_path / "files").mkdir()
    report = fuzz(kind, tmp_path / "files", 20_000 // len(ALL_KINDS) + 1, seed=1)
    print(f"\n{kind.name}: {report}")
    assert not report.failures
