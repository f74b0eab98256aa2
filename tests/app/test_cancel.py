"""Cancelling, by anybody at any time: one end everywhere, no result unless it was stated, proven in any case."""

import asyncio

import pytest
import pytest_asyncio

from tdn_interop.app.jobs.job import JobState
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.errors import Reason, TdnError
from tests.app.job_mesh import (
    ends,
    flow,
    job_mesh,
    left_behind,
    open_jobs,
    proven,
    reasons,
    until,
)
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOLDERS = (AIRLINE, REGISTRY)
# The work of a stage, and what the job is in while it lasts.
STAGES = {
    "decide": (JobState.AWAITING_APPROVAL, PartyState.AWAITING_APPROVAL),
    "load": (JobState.READY, PartyState.RESERVED),
    "run": (JobState.RUNNING, PartyState.RUNNING),
    "deliver": (JobState.VERIFYING, PartyState.COMPUTED),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def network(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def mesh(network):
    yield network
    assert left_behind(network) == []
    assert await open_jobs(network) == []


def held(mesh, node, stage, monkeypatch):
    """Hold the work of `stage` at `node`: (it has begun, let it go on)."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    work = mesh.nodes[node].jobs._work
    real = getattr(work, stage)

    async def slow(*arguments):
        begun.set()
        await go_on.wait()
        return await real(*arguments)

    monkeypatch.setattr(work, stage, slow)
    return begun, go_on


@pytest.mark.parametrize("asker", HOLDERS)
@pytest.mark.parametrize("stage", STAGES)
async def test_cancelled_in_the_middle_of(mesh, monkeypatch, stage, asker):
    """The registry coordinates; the airline is held in the stage, so everybody waits in it."""
    begun, _ = held(mesh, AIRLINE, stage, monkeypatch)
    job_id = await mesh.nodes[REGISTRY].jobs.run(flow(HOLDERS, path="never.csv"))
    async with asyncio.timeout(20):
        await begun.wait()
    job_state, party_state = STAGES[stage]
    await until(mesh, REGISTRY, job_id, state=job_state.name)
    await until(mesh, AIRLINE, job_id, party_state=party_state.name)
    if (
        stage == "deliver"
    ):  # the coordinator has its result and has said so: its part is over, the result stays
        await until(mesh, REGISTRY, job_id, party_state="SUCCESS")
        put_out = [path for path in left_behind(mesh) if "/results/" in path]
        assert put_out == [f"{REGISTRY}/results/never.csv"]
    mesh.nodes[asker].jobs.cancel(job_id, "wrong file")
    rows = await ends(mesh, job_id, HOLDERS)
    assert reasons(rows) == {("CANCELLED", "JOB_CANCELLED", asker)}
    assert {row.failure["message"] for row in rows.values()} == {"wrong file"}
    kept = mesh.folder / REGISTRY / "results" / "never.csv"
    with_result = [node for node, row in rows.items() if "result_file" in row.facts]
    assert with_result == ([REGISTRY] if stage == "deliver" else [])
    assert kept.exists() == (stage == "deliver")
    kept.unlink(missing_ok=True)
    found = await proven(mesh, rows[REGISTRY])
    assert found.outcome.name == "CANCELLED"
    assert [party.node for party in found.parties if party.stated] == sorted(HOLDERS)


async def test_cancelled_by_the_receiver_that_waits_for_data(mesh, monkeypatch):
    begun, _ = held(mesh, AIRLINE, "run", monkeypatch)
    job_id = await mesh.nodes[AIRLINE].jobs.run(flow())
    async with asyncio.timeout(20):
        await begun.wait()
    await until(mesh, RESEARCH, job_id, party_state="RUNNING")
    mesh.nodes[RESEARCH].jobs.cancel(job_id, "")
    rows = await ends(mesh, job_id)
    assert reasons(rows) == {("CANCELLED", "JOB_CANCELLED", RESEARCH)}


async def test_too_late(mesh):
    """What has succeeded stays so, and whoever cancels is told."""
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="kept.csv"))
    rows = await ends(mesh, job_id)
    for node in rows:
        with pytest.raises(TdnError) as error:
            mesh.nodes[node].jobs.cancel(job_id, "")
        assert error.value.reason is Reason.STATE_CONFLICT
    assert {row.state for row in rows.values()} == {"SUCCEEDED"}
    (mesh.folder / RESEARCH / "results" / "kept.csv").unlink()


@pytest.mark.parametrize("changes", range(1, 20, 2))
async def test_cancelled_at_any_moment(mesh, changes):
    """After so many changes at the coordinator: cancelled everywhere or succeeded everywhere."""
    jobs = mesh.nodes[RESEARCH].jobs
    job_id = await jobs.run(flow(path="race.csv"))
    seen = 0
    async for row in jobs.watch(job_id):
        seen += 1
        if seen == changes:
            break
    refused = None
    try:
        jobs.cancel(job_id, "now")
    except TdnError as error:  # the verdict was quicker
        refused = error
    assert refused is None or (refused.reason, "too late" in refused.message) == (Reason.STATE_CONFLICT, True)
    rows = await ends(mesh, job_id)
    (state,) = {row.state for row in rows.values()}
    assert state in {"CANCELLED", "SUCCEEDED"}
    file = mesh.folder / RESEARCH / "results" / "race.csv"
    assert file.exists() == (rows[RESEARCH].party_state == "SUCCESS")
    assert (await proven(mesh, rows[RESEARCH])).outcome.name == state
    file.unlink(missing_ok=True)
