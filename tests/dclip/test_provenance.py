"""The commit that results name."""

from pathlib import Path

import pytest

from dclip import provenance


def test_outside_a_checkout_the_commit_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        provenance, "__file__", str(tmp_path / "pipeline" / "records" / "provenance.py")
    )
    monkeypatch.setenv("DCLIP_COMMIT", "c0ffee")
    assert provenance.git_commit.__wrapped__() == "c0ffee"
    monkeypatch.setenv("DCLIP_COMMIT", "")  # as the image says when it was built without COMMIT
    assert provenance.git_commit.__wrapped__() is None
