"""The part file and the source: what a crash leaves, what a disk refuses."""

import errno
import hashlib
import os
import stat

import pytest

from tdn_interop.app.files import transfer_files as files
from tdn_interop.app.files.transfer_files import Part, Source
from tdn_interop.errors import Reason, TdnError


@pytest.fixture
async def part(tmp_path):
    part = Part(tmp_path / ".part")
    yield part
    await part.close()


async def test_a_part_file_goes_on_behind_what_is_stored(tmp_path, part):
    """T-DLV-02.F3: what is behind it was not acknowledged, and is cut off."""
    (tmp_path / ".part").write_bytes(b"stored, and what came after")
    assert await part.open(6) == 21
    await part.append(memoryview(b" again"))
    assert await part.sync() == 12
    assert (tmp_path / ".part").read_bytes() == b"stored again"
    assert await part.sha256() == hashlib.sha256(b"stored again").hexdigest()


async def test_only_the_owner_may_read_a_part_file(tmp_path, part):
    await part.open(0)
    assert stat.S_IMODE((tmp_path / ".part").stat().st_mode) == 0o600


async def test_a_part_file_that_has_lost_something(tmp_path, part):
    (tmp_path / ".part").write_bytes(b"sto")
    with pytest.raises(TdnError) as error:
        await part.open(6)
    assert error.value.reason is Reason.DIGEST_MISMATCH


async def test_a_part_file_is_no_link(tmp_path, part):
    (tmp_path / "mine").write_bytes(b"mine")
    (tmp_path / ".part").symlink_to(tmp_path / "mine")
    with pytest.raises(TdnError) as error:
        await part.open(0)
    assert error.value.reason is Reason.CONFIG_INVALID
    assert (tmp_path / "mine").read_bytes() == b"mine"


async def test_a_full_disk_is_named(part, monkeypatch):
    await part.open(0)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(TdnError) as error:
        await part.append(memoryview(b"x"))
    assert error.value.reason is Reason.RESOURCE_EXHAUSTED
    assert "No space" in error.value.message


def test_a_file_that_cannot_fit_is_refused_before_it_comes(tmp_path):
    """T-CHK-02.N5: what somebody announces is compared, never allocated."""
    files.check_room(tmp_path / "got", 1)
    with pytest.raises(TdnError) as error:
        files.check_room(tmp_path / "got", 1 << 50)
    assert error.value.reason is Reason.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("crash", ["before", "between", "after", "moved on"])
def test_a_name_is_given_once_wherever_it_was_interrupted(tmp_path, crash):
    part, out = tmp_path / ".part", tmp_path / "got"
    if crash in {"before", "between"}:
        part.write_bytes(b"whole")
    if crash == "between":
        os.link(part, out)
    if crash == "after":
        out.write_bytes(b"whole")
    files.publish(part, out)
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == ({} if crash == "moved on" else {"got": b"whole"})


def test_a_name_that_is_taken_stays(tmp_path):
    part, out = tmp_path / ".part", tmp_path / "got"
    part.write_bytes(b"whole")
    out.write_bytes(b"mine")
    with pytest.raises(TdnError) as error:
        files.publish(part, out)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    assert str(part) in error.value.message
    assert (part.read_bytes(), out.read_bytes()) == (b"whole", b"mine")


def test_a_file_system_that_gives_no_second_name(tmp_path, monkeypatch):
    """What has come is not lost, and the owner hears where it is."""
    part = tmp_path / ".part"
    part.write_bytes(b"whole")

    def link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(TdnError) as error:
        files.publish(part, tmp_path / "got")
    assert error.value.reason is Reason.CONFIG_INVALID
    assert str(part) in error.value.message
    assert part.read_bytes() == b"whole"


def source_of(path):
    return Source(path, files.shape(path))


@pytest.fixture
async def sent(tmp_path):
    path = tmp_path / "sent"
    path.write_bytes(bytes(range(200)))
    source = source_of(path)
    yield path, source
    await source.close()


async def test_what_is_read_again_is_hashed_once(sent):
    path, source = sent
    await source.skip(50)
    for offset in (50, 20, 60, 100):
        assert await source.read(offset, 50) == path.read_bytes()[offset : offset + 50]
    await source.read(150, 50)
    assert await source.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("change", ["grows", "shrinks", "other content", "another file", "gone"])
async def test_a_file_that_is_not_what_it_was(sent, change):
    path, source = sent
    await source.read(0, 100)
    content = path.read_bytes()
    if change in {"another file", "gone"}:
        path.unlink()
    if change != "gone":
        path.write_bytes({"grows": content + b"x", "shrinks": content[:150]}.get(change, bytes(200)))
    if change == "other content":
        os.utime(path, ns=(1, 1))
    with pytest.raises(TdnError) as error:
        await source.sha256()
    wanted = Reason.INPUT_INVALID if change == "gone" else Reason.DIGEST_MISMATCH
    assert error.value.reason is wanted
    if change == "shrinks":
        with pytest.raises(TdnError):
            await source.read(100, 100)
