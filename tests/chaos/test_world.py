"""The harness of the kills can fail: each thing it looks for is put before it once."""

import hashlib

import pytest

from tests.chaos.world import MIB, SENDER, Kill, Outcome, _problems


@pytest.fixture
def moved(tmp_path):
    """(outcome, out, source, digest) of a file that arrived."""
    source, out = tmp_path / "file", tmp_path / "out" / "file"
    out.parent.mkdir()
    for path in (source, out):
        path.write_bytes(b"content")
    digest = hashlib.sha256(b"content").hexdigest()
    told = {"bytes": 7, "sha256": digest, "resent_bytes": 0, "seconds": 1.0, "resumes": 0}
    return Outcome((Kill(SENDER, 0.5),), dict(told), dict(told)), out, source, digest


def test_what_arrived_whole_and_once_is_no_problem(moved):
    assert _problems(*moved) == []


def test_other_content_a_missing_file_and_what_is_left_are_problems(moved):
    _, out, _, _ = moved
    (out.parent / ".tdn-1.part").write_bytes(b"")
    assert _problems(*moved) == ["left behind: .tdn-1.part"]
    out.write_bytes(b"c0ntent")
    assert "the file is not identical" in _problems(*moved)
    out.unlink()
    assert "the file is not identical" in _problems(*moved)


def test_what_the_commands_say_counts(moved):
    outcome, *_ = moved
    outcome.sent["resent_bytes"] = 17 * MIB + 1
    assert _problems(*moved) == [f"resent {17 * MIB + 1} bytes, allowed {17 * MIB}"]
    outcome.sent |= {"resent_bytes": 0, "bytes": 6}
    assert len(_problems(*moved)) == 1
    outcome.received = {"problem": "no answer"}
    assert _problems(*moved) == ["no answer"]
