"""Jobs on a node whose database fails for a while: nothing that was said is lost, and nobody ends differently."""

import asyncio

import pytest
import pytest_asyncio
import tenacity
from structlog.testing import capture_logs

from tdn_interop.app.jobs import job_protocol as words
from tdn_interop.app.jobs import job_run
from tdn_interop.app.jobs import jobs as engine
from tdn_interop.errors import Reason, TdnError, Unavailable
from tests.app.job_mesh import ends, flow, job_mesh, left_behind, open_jobs, proven
from tests.app.test_jobs import crash
from tests.mesh import AIRLINE, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
DOWN = Unavailable(Reason.STORE_UNAVAILABLE, "database: disk I/O error")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(network, monkeypatch):
    monkeypatch.setattr(engine, "BUNDLE_S", 0.3)
    monkeypatch.setattr(job_run, "ATTEST_S", 1.0)
    with capture_logs():  # traces in colour take seconds
        yield network
    assert await open_jobs(network) == []
    assert left_behind(network) == []


def failing(mesh, node, monkeypatch, when):
    """Let each record of a job of `node` fail while `when(run)` holds and the list that is returned holds True."""
    records = mesh.nodes[node].jobs._records
    real, on = records.write, [True]

    async def write(run):
        if on[0] and when(run):
            raise DOWN
        await real(run)

    monkeypatch.setattr(records, "write", write)
    return on


async def gone(mesh, node, job_id):
    """Wait until nothing is left to do with a job."""
    async with asyncio.timeout(20):
        while job_id in mesh.nodes[node].jobs._runs:
            await asyncio.sleep(0.01)


def leaving(mesh, node, monkeypatch):
    """An event: `node` has tried to let go of a job."""
    left, leave = asyncio.Event(), mesh.nodes[node].jobs._leave

    async def leaves(run):
        await leave(run)
        left.set()

    monkeypatch.setattr(mesh.nodes[node].jobs, "_leave", leaves)
    return left


def hears_the_end(run):
    return any(isinstance(entry.event, words.Conclude) for entry in run.pending.entries)


@pytest.mark.parametrize("when", [lambda run: run.papers.verdict, hears_the_end])
@pytest.mark.parametrize("node", [AIRLINE, RESEARCH])
@pytest.mark.parametrize("killed", [False, True])
async def test_a_verdict_that_cannot_be_recorded_for_long(mesh, monkeypatch, when, node, killed):
    """The journal and the parcel with the verdict stay until the record holds it."""
    on = failing(mesh, node, monkeypatch, when)
    left = leaving(mesh, node, monkeypatch)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="late.csv"))
    async with asyncio.timeout(30):
        await left.wait()
    on[0] = False
    if killed:
        await crash(mesh, node)
        await mesh.start(node)
    found = await ends(mesh, job_id)
    assert {row.state for row in found.values()} == {"SUCCEEDED"}
    assert len({row.verdict for row in found.values()}) == 1
    await gone(mesh, node, job_id)
    (mesh.folder / RESEARCH / "results" / "late.csv").unlink()


async def test_a_proposal_that_cannot_be_recorded_at_once(mesh, monkeypatch):
    records = mesh.nodes[AIRLINE].jobs._records
    real, left = records.write, [2]

    async def write(run):
        if left[0]:
            left[0] -= 1
            raise DOWN
        await real(run)

    monkeypatch.setattr(records, "write", write)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="late.csv"))
    found = await ends(mesh, job_id)
    assert (left, {row.state for row in found.values()}) == ([0], {"SUCCEEDED"})
    (mesh.folder / RESEARCH / "results" / "late.csv").unlink()


async def test_a_database_that_cannot_be_asked_about_a_job(mesh, monkeypatch):
    records = mesh.nodes[AIRLINE].jobs._records
    real, left = records.past, [2]

    async def past(job_id):
        if left[0]:
            left[0] -= 1
            raise DOWN
        return await real(job_id)

    monkeypatch.setattr(records, "past", past)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="late.csv"))
    found = await ends(mesh, job_id)
    assert (left, {row.state for row in found.values()}) == ([0], {"SUCCEEDED"})
    (mesh.folder / RESEARCH / "results" / "late.csv").unlink()


async def test_a_job_that_was_never_recorded_is_none(mesh, monkeypatch):
    jobs = mesh.nodes[RESEARCH].jobs
    failing(mesh, RESEARCH, monkeypatch, lambda _run: True)
    before = set(jobs._runs)
    with pytest.raises(TdnError) as error:
        await jobs.run(flow())
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert set(jobs._runs) <= before


async def bundle(mesh, job_id):
    """The verified bundle of a job, when there is one."""
    async with asyncio.timeout(20):
        while not (row := await mesh.nodes[RESEARCH].jobs.find(job_id)).bundle:
            await asyncio.sleep(0.01)
    return await proven(mesh, row)


async def test_a_party_that_hears_the_verdict_late_still_attests_it(mesh, monkeypatch):
    """It was away when the job ended; the bundle is made all the same."""
    left, stopped = leaving(mesh, RESEARCH, monkeypatch), asyncio.Event()
    monkeypatch.setattr(mesh.nodes[AIRLINE].jobs._records, "write", stopping(mesh, AIRLINE, stopped))
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="late.csv"))
    async with asyncio.timeout(30):
        await stopped.wait()
        await crash(mesh, AIRLINE)
        await left.wait()
    assert not (await mesh.nodes[RESEARCH].jobs.find(job_id)).bundle
    await mesh.start(AIRLINE)
    assert AIRLINE in {party.node for party in (await bundle(mesh, job_id)).parties}
    for node in mesh.nodes:
        if hasattr(mesh.nodes[node], "jobs"):
            await gone(mesh, node, job_id)
    (mesh.folder / RESEARCH / "results" / "late.csv").unlink()


def stopping(mesh, node, stopped):
    """Records of a node that goes no further when it hears how its job has ended."""
    real = mesh.nodes[node].jobs._records.write

    async def write(run):
        if hears_the_end(run):
            stopped.set()
            await asyncio.Event().wait()
        await real(run)

    return write


@pytest.mark.parametrize("node", [AIRLINE, RESEARCH])
async def test_a_hub_that_is_away_for_long_delays_the_evidence(mesh, monkeypatch, node):
    left, anchoring = leaving(mesh, node, monkeypatch), mesh.nodes[node].mesh.anchoring
    monkeypatch.setattr(engine, "ATTEST_AGAIN_S", 0.3)
    monkeypatch.setattr(job_run.JobRun._attest.retry, "stop", tenacity.stop_after_attempt(1))

    async def attest(_index):
        raise Unavailable(Reason.UNREACHABLE, "the hub is away")

    with monkeypatch.context() as patch:
        patch.setattr(anchoring, "attest", attest)
        job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="late.csv"))
        found = await ends(mesh, job_id)
        async with asyncio.timeout(30):
            await left.wait()
    assert not (await mesh.nodes[RESEARCH].jobs.find(job_id)).bundle
    assert {row.state for row in found.values()} == {"SUCCEEDED"}
    assert node in {party.node for party in (await bundle(mesh, job_id)).parties}
    (mesh.folder / RESEARCH / "results" / "late.csv").unlink()
