"""Result files: whole or not at all, never over another file, inside the results directory."""

import errno
import hashlib
import os
import stat
from pathlib import Path

import pytest

from tdn_interop.app.data.keys import Normalisation, encode_key, load_keys
from tdn_interop.app.data.results import place, write_keys, write_rows
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, Refused, TdnError

FORM = CsvFormat("gb18030", ";")
SOURCE = 'id;名\n b ;乙\na;甲\n;空\nb;"x;y"\nc;丙\n'


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "source.csv"
    path.write_bytes(SOURCE.encode("gb18030"))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "r.csv"


def test_an_external_receiver_gets_key_columns_sorted(out):
    items = [encode_key(key) for key in [("b", "2"), ("a", "é,x"), ("a", "1")]]
    written = write_keys(out, ["id", "nr"], items)
    assert out.read_text() == 'id,nr\na,1\na,"é,x"\nb,2\n'
    assert (written.rows, written.bytes, written.sha256) == (3, out.stat().st_size, sha256(out))
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert list(out.parent.iterdir()) == [out]


def test_an_empty_intersection_is_a_header(out):
    assert write_keys(out, ["id"], []).rows == 0
    assert out.read_text() == "id\n"


@pytest.mark.parametrize("item", [b"", b"\0", b"\0\0", b"\0\2a", b"\0\1a\0", b"\0\1\xff", encode_key("ab")])
def test_a_peer_item_that_is_no_key_is_refused_and_leaves_nothing(out, item):
    with pytest.raises(PeerProtocolError, match="INVALID_REQUEST"):
        write_keys(out, ["id"], [encode_key("a"), item])
    assert list(out.parent.iterdir()) == []


def test_a_holder_gets_all_its_rows_whose_key_matched(source, out):
    keys = load_keys(source, FORM, ["id"], Normalisation())
    matched = [keys.items.index(encode_key(["b"])), keys.items.index(encode_key(["c"]))]
    written = write_rows(out, source, FORM, sha256(source), keys, matched)
    assert out.read_bytes().decode("gb18030") == 'id;名\n b ;乙\nb;"x;y"\nc;丙\n'
    assert written.rows == 3


def test_a_source_that_changed_gives_no_result(source, out):
    keys = load_keys(source, FORM, ["id"], Normalisation())
    registered = sha256(source)
    source.write_bytes(SOURCE.replace("c", "d").encode("gb18030"))
    with pytest.raises(ConfigError, match="DIGEST_MISMATCH"):
        write_rows(out, source, FORM, registered, keys, [0])
    assert list(out.parent.iterdir()) == []


def test_a_source_that_changes_while_rows_are_written_gives_no_result(source, out):
    keys = load_keys(source, FORM, ["id"], Normalisation())
    registered = sha256(source)

    # Changed between the digest taken first and the pass over the rows.
    real = hashlib.file_digest

    def digest_then_change(file, name):
        found = real(file, name)
        source.write_bytes(SOURCE.replace("c", "d").encode("gb18030"))
        return found

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ConfigError, match="DIGEST_MISMATCH"):
        patch.setattr(hashlib, "file_digest", digest_then_change)
        write_rows(out, source, FORM, registered, keys, [0])
    assert list(out.parent.iterdir()) == []


def test_nothing_is_overwritten_even_if_the_file_appears_meanwhile(out):
    out.write_text("mine")
    with pytest.raises(ConfigError) as caught:
        write_keys(out, ["id"], [encode_key("a")])
    assert (caught.value.reason, caught.value.requirement) == (Reason.OUTPUT_EXISTS, "TDN-F-RES-08")
    assert out.read_text() == "mine"
    assert list(out.parent.iterdir()) == [out]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, Reason.RESOURCE_EXHAUSTED), (errno.EROFS, Reason.CONFIG_INVALID)],
)
def test_a_disk_that_fails_leaves_nothing_behind(out, monkeypatch, number, reason):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError) as caught:
        write_keys(out, ["id"], [encode_key("a")])
    assert caught.value.reason is reason
    assert list(out.parent.iterdir()) == []


def test_missing_directories_are_made_for_the_owner_alone(tmp_path):
    path = place(tmp_path / "results", "2026/r.csv", own=False)
    write_keys(path, ["id"], [encode_key("a")])
    assert path == tmp_path / "results" / "2026" / "r.csv"
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("requested", ["/etc/x.csv", "../x.csv", "a/../../x.csv", "a/../x.csv", "out/x.csv"])
def test_only_the_owners_flow_may_write_elsewhere(tmp_path, requested):
    results = tmp_path / "results"
    results.mkdir()
    (results / "out").symlink_to(tmp_path)
    with pytest.raises(Refused) as caught:
        place(results, requested, own=False)
    assert (caught.value.reason, caught.value.requirement) == (Reason.POLICY_DENIED, "TDN-F-RES-09")
    assert place(results, requested, own=True) == results / requested


@pytest.mark.parametrize("requested", ["", ".", "..", "a/", "/", "a\0b"])
@pytest.mark.parametrize("own", [True, False])
def test_a_path_that_names_no_file_is_refused(tmp_path, requested, own):
    with pytest.raises(TdnError):
        place(tmp_path, requested, own=own)


def test_an_existing_file_is_told_before_anything_runs(tmp_path):
    (tmp_path / "r.csv").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="OUTPUT_EXISTS"):
        place(tmp_path, "r.csv", own=False)
