"""Many jobs, and parties that die in the middle of one."""

import asyncio

import pytest
import pytest_asyncio

from tdn_interop.app.evidence.wire import decode_event, decode_tree_head
from tests.app.job_mesh import (
    BOTH,
    PARTIES,
    ends,
    flow,
    job_mesh,
    left_behind,
    proven,
    reasons,
    restart,
    run,
    until,
)
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        for node in PARTIES:
            await restart(running, node, ("idle_s = 120", "idle_s = 1"))
        yield running


async def test_ten_at_once(mesh):
    """Each party coordinates some; every job has its own result."""
    starts = [
        mesh.nodes[PARTIES[number % 3]].jobs.run(flow(path=f"result-{number}.csv")) for number in range(10)
    ]
    jobs = await asyncio.gather(*starts)
    for number, rows in enumerate(await asyncio.gather(*(ends(mesh, job_id) for job_id in jobs))):
        assert {row.state for row in rows.values()} == {"SUCCEEDED"}, rows[RESEARCH].failure
        file = mesh.folder / RESEARCH / "results" / f"result-{number}.csv"
        assert file.read_text().split() == ["id", *BOTH]
        file.unlink()
    assert left_behind(mesh) == []


async def test_the_record_of_a_job(mesh):
    """It says when the job began and ended here; the evidence log has each of its states once."""
    rows = await run(mesh, flow(path="timed.csv"))
    (mesh.folder / RESEARCH / "results" / "timed.csv").unlink()
    for node, row in rows.items():
        assert row.created_at_ms < row.ended_at_ms
        again = await mesh.nodes[node].jobs.find(row.job_id)
        assert (again.created_at_ms, again.ended_at_ms) == (row.created_at_ms, row.ended_at_ms)
        noted = await events(mesh.nodes[node].jobs._records._log, row.job_id)
        assert len(noted) == len(set(noted)), noted


async def events(log, job_id):
    """(state, state of the part) of every event about the job."""
    found = [decode_event((await log.event(index)).statement) for index in range(await size(log))]
    return [
        (e.facts["state"], e.facts["partyState"])
        for e in found
        if (e.kind, e.subject) == ("job.state", job_id)
    ]


async def size(log):
    return decode_tree_head((await log.head()).statement).size


async def test_two_with_the_same_output(mesh):
    """One gets the name, the other fails everywhere and leaves the first one's result alone."""
    start = mesh.nodes[RESEARCH].jobs.run
    jobs = await asyncio.gather(start(flow(path="same.csv")), start(flow(path="same.csv")))
    rows = await asyncio.gather(*(ends(mesh, job_id) for job_id in jobs))
    good, bad = sorted(rows, key=lambda found: found[RESEARCH].state != "SUCCEEDED")
    assert {row.state for row in good.values()} == {"SUCCEEDED"}
    ((state, reason, who),) = reasons(bad)
    assert (state in {"FAILED", "REJECTED"}, reason, who) == (True, "OUTPUT_EXISTS", RESEARCH)
    file = mesh.folder / RESEARCH / "results" / "same.csv"
    assert file.read_text().split() == ["id", *BOTH]
    file.unlink()
    assert left_behind(mesh) == []


@pytest.mark.parametrize("victim", [REGISTRY, RESEARCH])
async def test_a_party_that_stays_away_for_longer_than_its_lease(mesh, monkeypatch, victim):
    """The job fails everywhere with one verdict, which the victim takes when it is back; then it works again.

    The victim is the registry, a mere party, or research, which coordinates.
    """
    begun = asyncio.Event()

    async def never(*_):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(mesh.nodes[AIRLINE].jobs._work, "run", never)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="never.csv", stop_s=10, lease_s=1))
    async with asyncio.timeout(20):
        await begun.wait()
    await until(mesh, victim, job_id, party_state="RUNNING")
    await crash(mesh, victim)
    row = await until(mesh, AIRLINE, job_id, party_state="FAILED")
    if victim == REGISTRY:
        rows = await ends(mesh, job_id, (RESEARCH, AIRLINE))
        assert reasons(rows) == {("FAILED", "PARTY_LOST", RESEARCH)}
        assert REGISTRY in rows[RESEARCH].failure["message"]
        found = await proven(mesh, rows[RESEARCH])
        assert found.outcome.name == "FAILED"
        assert [party.node for party in found.parties if party.stated] == [AIRLINE, RESEARCH]
    else:
        assert row.failure["reason"] == "PARTY_LOST"
        assert RESEARCH in row.failure["message"]
    monkeypatch.undo()
    await mesh.start(victim)
    rows = await ends(mesh, job_id)
    assert {row.state for row in rows.values()} == {"FAILED"}
    assert {row.failure["reason"] for row in rows.values()} == {"PARTY_LOST"}
    assert len({row.verdict for row in rows.values()}) == 1
    rows = await run(mesh, flow(path="next.csv"))
    assert {row.state for row in rows.values()} == {"SUCCEEDED"}, rows[RESEARCH].failure
    (mesh.folder / RESEARCH / "results" / "next.csv").unlink()
    assert left_behind(mesh) == []


async def crash(mesh, node):
    """Stop without a goodbye, as a killed process does: its jobs stay as they were, its peers hear nothing."""
    channels = mesh.nodes[node].mesh.channels

    async def fall_silent(_timeout_s):
        for task in channels._runs:
            task.cancel()
        await asyncio.gather(*channels._runs, return_exceptions=True)

    channels.close = fall_silent
    await mesh.stop(node)
