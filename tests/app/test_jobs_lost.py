"""A coordinator that dies: its parties hear the end from it when it is back, and end alone when it is not."""

import asyncio
import contextlib

import pytest
import pytest_asyncio
import sqlalchemy as sa

from tdn_interop import config
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.statements import VERDICT_KIND, Outcome
from tdn_interop.app.flow import check_limits, flow_from_toml
from tdn_interop.app.job_protocol import Computed
from tdn_interop.app.store import jobs as rows
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport.records_wire import decode_signed
from tests.app.job_mesh import (
    PARTIES,
    end,
    ends,
    flow,
    job_mesh,
    left_behind,
    open_jobs,
    reasons,
    restart,
    run,
    until,
)
from tests.app.test_jobs import crash
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOLDERS = (AIRLINE, REGISTRY)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        for node in PARTIES:
            await restart(running, node, ("idle_s = 120", "idle_s = 1"))
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(network):
    yield network
    assert await open_jobs(network) == []
    assert left_behind(network) == []


@contextlib.asynccontextmanager
async def coordinator_lost(mesh, monkeypatch, **options):
    """A job whose coordinator, research, has died while all computed."""
    begun = asyncio.Event()

    async def never(*_):
        begun.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(mesh.nodes[AIRLINE].jobs._work, "run", never)
        job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="never.csv", **options))
        async with asyncio.timeout(20):
            await begun.wait()
        for node in (RESEARCH, REGISTRY):
            await until(mesh, node, job_id, party_state="RUNNING")
        await crash(mesh, RESEARCH)
        yield job_id


async def works(mesh):
    found = await run(mesh, flow(path="next.csv"))
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    (mesh.folder / RESEARCH / "results" / "next.csv").unlink()


async def test_a_coordinator_that_comes_back_gives_the_verdict(mesh, monkeypatch):
    """Long before the parties would give up."""
    async with coordinator_lost(mesh, monkeypatch, step_s=300, run_s=3000) as job_id:
        await mesh.start(RESEARCH)
        found = await ends(mesh, job_id)
    assert reasons(found) == {("FAILED", "PARTY_LOST", RESEARCH)}
    (verdict,) = {row.verdict for row in found.values()}
    said = wire.decode_verdict(decode_signed(verdict).statement)
    assert [signed.signer for signed in said.statements] == [RESEARCH]
    assert said.missing == HOLDERS
    assert {row.agreement for row in found.values()} == {found[RESEARCH].agreement}
    for node in PARTIES:
        noted = [event for _, event in await mesh.nodes[node].jobs._records._log.about(job_id)]
        assert [event.facts for event in noted if event.kind == VERDICT_KIND] == [{"outcome": "FAILED"}]
    await works(mesh)


async def test_a_coordinator_that_does_not_come_back(mesh, monkeypatch):
    async with coordinator_lost(mesh, monkeypatch, step_s=1, stop_s=1) as job_id:
        found = await ends(mesh, job_id, HOLDERS)
    for row in found.values():
        assert (row.state, row.party_state, row.failure["reason"]) == ("FAILED", "FAILED", "PARTY_LOST")
        assert RESEARCH in row.failure["message"]
        assert row.verdict is None
    await mesh.start(RESEARCH)
    await end(mesh, RESEARCH, job_id)
    await works(mesh)


async def test_whoever_asks_about_an_ended_job_hears_its_verdict(mesh, monkeypatch):
    """A party that missed the verdict reports again."""
    heard = []
    found = await run(mesh, flow(path="done.csv"))
    (mesh.folder / RESEARCH / "results" / "done.csv").unlink()
    job_id = found[RESEARCH].job_id
    mesh.nodes[RESEARCH].jobs._drop(job_id)
    monkeypatch.setattr(mesh.nodes[AIRLINE].jobs._runs[job_id], "receive", heard.append)
    mesh.nodes[AIRLINE].jobs._runs[job_id]._send(RESEARCH, Computed(AIRLINE, 1, 0))
    async with asyncio.timeout(20):
        while not heard:
            await asyncio.sleep(0.01)
    assert (heard[0].sender, heard[0].outcome) == (RESEARCH, Outcome.SUCCEEDED)
    assert heard[0].verdict == decode_signed(found[RESEARCH].verdict)


async def reopened(mesh, node, job_id, **changes):
    """Stop the node and put its record back to a moment before the end."""
    store = mesh.nodes[node].jobs._store
    parties = changes.pop("parties", {})

    def write(connection: sa.Connection) -> None:
        row = rows.get(connection, job_id)
        rows.put(connection, rows.JobRow(**{name: getattr(row, name) for name in row.__slots__} | changes))
        for party in rows.parties(connection, job_id):
            change = parties.get(party.party, {})
            rows.put_party(
                connection, rows.JobPartyRow(**{n: getattr(party, n) for n in party.__slots__} | change)
            )

    mesh.nodes[node].jobs._drop(job_id)
    await store.run(write)
    await mesh.stop(node)
    await mesh.start(node)
    return await end(mesh, node, job_id)


@pytest.mark.parametrize("stated", [True, False])
async def test_a_result_stays_if_it_was_stated(mesh, stated):
    """A crash between delivery and verdict, before and after the statement was on record."""
    found = await run(mesh, flow((AIRLINE,), path="mine.csv"), AIRLINE, HOLDERS)
    file = mesh.folder / AIRLINE / "results" / "mine.csv"
    silent = {} if stated else {AIRLINE: {"statement": None}}
    row = await reopened(
        mesh, AIRLINE, found[AIRLINE].job_id, ended_at_ms=0, state="VERIFYING", verdict=None, bundle=None, parties=silent
    )  # fmt: skip
    assert file.exists() == ("result_file" in row.facts) == stated
    # Everybody has stated success, so that is the verdict; or this node has not, so it has failed.
    assert (row.state, row.failure is None) == (("SUCCEEDED", True) if stated else ("FAILED", False))
    file.unlink(missing_ok=True)


async def test_a_verdict_on_record_is_not_given_again(mesh):
    """Signed, and the process died before it took it itself."""
    found = await run(mesh, flow(path="twice.csv"))
    (mesh.folder / RESEARCH / "results" / "twice.csv").unlink()
    before = found[RESEARCH]
    row = await reopened(mesh, RESEARCH, before.job_id, ended_at_ms=0, state="VERIFYING", bundle=None)
    assert (row.state, row.verdict) == ("SUCCEEDED", before.verdict)


async def test_unfinished_files_are_swept_at_the_start(mesh, tmp_path):
    folder = mesh.folder / RESEARCH / "results" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    target = tmp_path / "target"
    target.write_text("of somebody")
    (folder / ".result-abc").write_text("half")
    (folder.parent / ".result-def").write_text("half")
    (folder / "result-kept").write_text("whole")
    (folder / ".result-link").symlink_to(target)
    await mesh.stop(RESEARCH)
    await mesh.start(RESEARCH)
    assert sorted(path.name for path in folder.iterdir()) == [".result-link", "result-kept"]
    assert not (folder.parent / ".result-def").exists()
    assert target.read_text() == "of somebody"
    for path in folder.iterdir():
        path.unlink()


async def test_a_flow_of_another_node_binds_no_longer_than_allowed(mesh):
    limit = int(mesh.config(AIRLINE).timeouts.run_s)
    found = await run(mesh, flow(run_s=limit + 1), RESEARCH, (RESEARCH,))
    failure = found[RESEARCH].failure
    assert (found[RESEARCH].state, failure["reason"]) == ("REJECTED", Reason.POLICY_DENIED.name)
    assert "timeouts.run_s" in failure["message"]


@pytest.mark.parametrize("stage", ["approval_s", "step_s", "run_s", "stop_s"])
async def test_every_stage_has_a_limit(stage):
    longest = config.Timeouts()
    asked = flow_from_toml(flow(**{stage: int(getattr(longest, stage))}))
    check_limits(asked, longest)
    asked = flow_from_toml(flow(**{stage: int(getattr(longest, stage)) + 1}))
    with pytest.raises(TdnError) as error:
        check_limits(asked, longest)
    assert error.value.reason is Reason.POLICY_DENIED
    assert stage in error.value.message


async def test_a_coordinator_that_has_forgotten_the_job(mesh, monkeypatch):
    """Its database is gone: whoever reports to it hears so, and ends. Last here: its log begins anew, nobody anchors it."""
    async with coordinator_lost(mesh, monkeypatch, step_s=2, stop_s=1, run_s=3000) as job_id:
        for file in (mesh.folder / RESEARCH).glob("node.db*"):
            file.unlink()
        await mesh.start(RESEARCH)
        for node in HOLDERS:
            jobs = mesh.nodes[node].jobs
            jobs._runs[job_id]._send(RESEARCH, Computed(node, 1, 0))
        found = await ends(mesh, job_id, HOLDERS)
    assert {row.state for row in found.values()} == {"FAILED"}
    assert {row.failure["reason"] for row in found.values()} <= {"JOB_UNKNOWN", "PARTY_LOST"}
    assert all(row.ended_at_ms for row in found.values())
