"""The file of a backup: whatever is changed in it is refused, and nothing is written."""

import io
import json
import os
import tarfile

import pytest

from tdn_interop.app.backup import archive
from tdn_interop.app.backup.archive import About, Archive, write
from tdn_interop.errors import Reason, TdnError

ABOUT = About("bank-a.cn", "child", 1_800_000_000_000, 7)
SECRET = "correct horse"


@pytest.fixture(autouse=True)
def cheap_guesses(monkeypatch):
    monkeypatch.setattr(archive, "_COST", 1 << 10)


@pytest.fixture
def files(tmp_path):
    large = tmp_path / "node.db"
    large.write_bytes(os.urandom(3 * archive._CHUNK + 17))
    return {"identity.key": b"key", "notices/trust_bundle-cn.bin": b"", "node.db": large}


@pytest.fixture(params=["", SECRET], ids=["open", "sealed"])
def made(request, tmp_path, files):
    """(path, passphrase) of a backup."""
    path = tmp_path / "backup"
    write(path, ABOUT, files, request.param)
    return path, request.param


def refused(path, passphrase):
    with pytest.raises(TdnError) as caught:
        Archive(path, passphrase)
    return caught.value.reason


def test_what_goes_in_comes_out(made, files, tmp_path):
    path, passphrase = made
    assert path.stat().st_mode & 0o777 == 0o600
    found = Archive(path, passphrase)
    assert found.about == ABOUT
    out = tmp_path / "out"
    out.mkdir()
    found.extract(out)
    for name, content in files.items():
        assert (out / name).read_bytes() == (content if isinstance(content, bytes) else content.read_bytes())
        assert (out / name).stat().st_mode & 0o777 == 0o600


def test_nothing_is_overwritten(made, files):
    path, passphrase = made
    before = path.read_bytes()
    with pytest.raises(TdnError) as caught:
        write(path, ABOUT, files, passphrase)
    assert caught.value.reason is Reason.OUTPUT_EXISTS
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", [0, 9, 20, 40, 700, 5000, -(1 << 20), -20_000])
def test_one_changed_byte_is_found(made, at):
    path, passphrase = made
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)
    assert refused(path, passphrase) in (Reason.INPUT_INVALID, Reason.DIGEST_MISMATCH)


@pytest.mark.parametrize("length", [0, 5, 31, 600, 20_000, 1 << 20, (1 << 20) + 47, 3 << 20])
def test_a_file_that_was_cut_is_refused(made, length):
    path, passphrase = made
    path.write_bytes(path.read_bytes()[:length])
    assert refused(path, passphrase) in (Reason.INPUT_INVALID, Reason.DIGEST_MISMATCH)


def test_chunks_cannot_change_places(tmp_path, files):
    path = tmp_path / "backup"
    write(path, ABOUT, files, SECRET)
    data, size, head = path.read_bytes(), archive._CHUNK + 16, 31
    first, second = data[head : head + size], data[head + size : head + 2 * size]
    path.write_bytes(data[:head] + second + first + data[head + 2 * size :])
    assert refused(path, SECRET) is Reason.INPUT_INVALID


def test_no_passphrase_and_a_wrong_one(tmp_path, files):
    path = tmp_path / "backup"
    write(path, ABOUT, files, SECRET)
    assert b"identity.key" not in path.read_bytes()
    assert refused(path, "") is Reason.INPUT_INVALID
    assert refused(path, "correct horsf") is Reason.INPUT_INVALID


def forged(path, members, listed=None):
    """An archive with a list of contents that fits `members`, or another one."""
    items = {name: {"bytes": len(c), "sha256": archive._item(c).sha256} for name, c, _ in members}
    default = {
        "format": archive.FORMAT, "node": "x.cn", "role": "child", "made_at_ms": 1, "log_size": 0, "files": items,
    }  # fmt: skip
    data = json.dumps(default if listed is None else listed).encode()
    with tarfile.open(path, "w") as tar:
        for name, content, kind in [("contents.json", data, None), *members]:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            if kind:
                entry.type, entry.linkname, entry.size = kind, "/etc/passwd", 0
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    "member",
    [
        ("../evil", b"x", None), ("/etc/evil", b"x", None), ("notices/../evil", b"x", None), ("a/b", b"x", None),
        (".hidden", b"x", None), ("link", b"", tarfile.SYMTYPE), ("hard", b"", tarfile.LNKTYPE),
        ("device", b"", tarfile.CHRTYPE), ("folder", b"", tarfile.DIRTYPE),
    ],
)  # fmt: skip
def test_nothing_leaves_the_folder(tmp_path, member):
    path = tmp_path / "backup"
    forged(path, [("node.toml", b"", None)])
    assert Archive(path, "").about.node == "x.cn"
    forged(path, [member])
    assert refused(path, "") is Reason.INPUT_INVALID


@pytest.mark.parametrize("name", ["GNU.sparse.major", "GNU.sparse.size", "GNU.sparse.map", "size"])
@pytest.mark.parametrize("value", ["", "x", "0,1,2", "-1"])
def test_extended_headers_that_make_no_sense(tmp_path, name, value):
    path = tmp_path / "backup"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("contents.json")
        entry.pax_headers = {"GNU.sparse.size": "1", "GNU.sparse.minor": "0", name: value}
        tar.addfile(entry, io.BytesIO(b""))
    assert refused(path, "") is Reason.INPUT_INVALID


def test_a_sparse_file_that_claims_more_than_it_brings(tmp_path):
    """1,024 bytes of archive for a petabyte of zeros, if it likes; here for 1 MiB, with a digest that fits."""
    path, size = tmp_path / "backup", 1 << 20
    forged(path, [("node.db", bytes(size), None)])
    with tarfile.open(path) as tar:
        listed = tar.extractfile("contents.json").read()
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("contents.json")
        entry.size = len(listed)
        tar.addfile(entry, io.BytesIO(listed))
        entry = tarfile.TarInfo("node.db")
        entry.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "node.db",
            "GNU.sparse.realsize": str(size),
        }  # fmt: skip
        entry.size = 512
        tar.addfile(entry, io.BytesIO(b"0\n".ljust(512, b"\0")))
    assert path.stat().st_size < size
    assert refused(path, "") is Reason.INPUT_INVALID


@pytest.mark.parametrize("listed", [[], {"format": "other"}, {"format": archive.FORMAT, "files": []}])
def test_a_list_that_is_none(tmp_path, listed):
    path = tmp_path / "backup"
    forged(path, [], listed)
    assert refused(path, "") is Reason.INPUT_INVALID


def test_a_file_too_few_and_one_too_many(tmp_path):
    path = tmp_path / "backup"
    content = ("node.toml", b"x", None)
    forged(path, [content])
    with tarfile.open(path, "a") as tar:
        tar.addfile(tarfile.TarInfo("extra"), io.BytesIO())
    assert refused(path, "") is Reason.DIGEST_MISMATCH
    listed = {"format": archive.FORMAT, "node": "x.cn", "role": "child", "made_at_ms": 1, "log_size": 0,
              "files": {"node.toml": {"bytes": 1, "sha256": archive._item(b"x").sha256}}}  # fmt: skip
    forged(path, [], listed)
    assert refused(path, "") is Reason.INPUT_INVALID
