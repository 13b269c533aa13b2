"""Damaged files of every kind that is read: only documented errors, within bounds of time and memory."""

import fuzz_caches
import fuzz_checkpoints
import pytest
from fuzz import Kind, fuzz


# A module per kind of user: each has a list `KINDS`.
KINDS = [kind for kind in fuzz_checkpoints.KINDS if kind.name in ("safetensors", "torch")] + fuzz_caches.KINDS

each_kind = pytest.mark.parametrize("kind", [pytest.param(kind, id=kind.name) for kind in KINDS])


@each_kind
def test_damaged_files_give_documented_errors(kind: Kind, tmp_path):
    (tmp_path / "files").mkdir()
    report = fuzz(kind, tmp_path / "files", 100)
    assert not report.failures
    assert report.errors


@pytest.mark.slow
@each_kind
def test_many_damaged_files_give_documented_errors(kind: Kind, tmp_path):
    """Run by hand, with `-m slow -s`: the figures are printed."""
    (tmp_path / "files").mkdir()
    report = fuzz(kind, tmp_path / "files", 20_000 // len(KINDS) + 1, seed=1)
    print(f"\n{kind.name}: {report}")
    assert not report.failures
