"""Results between computing and handing out: killed at any moment, there is one file, and it is ours."""

import errno
import os
import stat

import pytest

from tdn_interop.app.data.keys import encode_key
from tdn_interop.app.data.results import write_keys
from tdn_interop.app.jobs import spool as module
from tdn_interop.app.jobs.spool import Spool
from tdn_interop.errors import Reason, TdnError

JOB, OTHER = "a" * 32, "b" * 32


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "spool")


@pytest.fixture(params=["same file system", "another file system"])
def target(request, tmp_path, monkeypatch):
    """A place for a result; on the other file system no file can have a second name."""
    if request.param == "another file system":
        real = os.link

        def link(source, new):
            if tmp_path / "spool" == module.Path(source).parent != module.Path(new).parent:
                raise OSError(errno.EXDEV, "another file system")
            real(source, new)

        monkeypatch.setattr(os, "link", link)
        monkeypatch.setattr(module, "_same_file_system", lambda *_: False)
    return tmp_path / "results" / "deep" / "result.csv"


def put(spool, job=JOB, items=("1", "2")):
    encoded = [encode_key([item]) for item in items]
    return spool.put(job, lambda path: write(path, encoded))


def write(path, items):
    return write_keys(path, ["id"], items)


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_it_is_handed_out_once_however_often_it_is_asked_for(spool, target, tmp_path):
    kept = put(spool)
    for _ in range(3):
        given = spool.deliver(JOB, kept, target)
    assert (given.path, given.sha256, given.rows) == (target, kept.sha256, 2)
    assert target.read_text().split() == ["id", "1", "2"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    spool.drop(JOB, target)
    assert files(tmp_path) == ["result.csv"]


def test_a_file_of_somebody_else_is_never_taken_for_ours(spool, target, tmp_path):
    """Not even when it holds the same."""
    spool.deliver(OTHER, put(spool, OTHER), target)
    with pytest.raises(TdnError) as error:
        spool.deliver(JOB, put(spool), target)
    assert error.value.reason is Reason.OUTPUT_EXISTS
    spool.withdraw(JOB, target)
    assert target.exists()


def test_what_was_handed_out_can_be_taken_back(spool, target, tmp_path):
    spool.deliver(JOB, put(spool), target)
    spool.withdraw(JOB, target)
    spool.drop(JOB, target)
    assert files(tmp_path) == []
    spool.withdraw(JOB, target)


def test_a_second_run_replaces_what_the_first_has_left(spool):
    put(spool)
    again = put(spool, items=("3",))
    assert spool.found(JOB, 1) == again
    assert again.path.read_text().split() == ["id", "3"]


def test_nobody_else_reads_the_spool(spool):
    path = put(spool).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_belongs_to_no_job_is_swept(spool, tmp_path):
    spool.sweep([])
    put(spool)
    put(spool, OTHER)
    (tmp_path / "spool" / ".result-half").write_text("half")
    spool.sweep([JOB])
    assert files(tmp_path / "spool") == [JOB]
    assert spool.found(OTHER, 2) is None
