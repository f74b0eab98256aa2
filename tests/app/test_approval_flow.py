"""Humans decide: the job waits where they can see it, their word counts once, and everybody hears it."""

import asyncio
import json

import pytest
import pytest_asyncio

from tdn_interop.errors import Reason, TdnError, Unavailable
from tests.app.job_mesh import (
    PARTIES,
    ends,
    flow,
    job_mesh,
    left_behind,
    open_jobs,
    proven,
    reasons,
    restart,
    tdn,
    until,
)
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
HOLDERS = (AIRLINE, REGISTRY)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        for node in HOLDERS:
            await restart(running, node, ('mode = "rules"', 'mode = "manual"'))
        yield running


async def proposed(mesh, **options):
    """A job that both holders have before them."""
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(**options))
    for node in HOLDERS:
        await until(mesh, node, job_id, party_state="AWAITING_APPROVAL")
    return job_id


async def test_job_waits_for_every_human_and_then_runs(mesh):
    job_id = await proposed(mesh, path="approved.csv")
    mesh.nodes[AIRLINE].jobs.decide(job_id, "fine", approve=True)
    row = await until(mesh, AIRLINE, job_id, party_state="APPROVED")
    assert row.state == "AWAITING_APPROVAL"
    mesh.nodes[REGISTRY].jobs.decide(job_id, "", approve=True)
    rows = await ends(mesh, job_id)
    assert {row.state for row in rows.values()} == {"SUCCEEDED"}
    file = mesh.folder / RESEARCH / "results" / "approved.csv"
    assert rows[RESEARCH].facts["result_file"] == str(file)
    file.unlink()


async def test_refusal_ends_the_job_everywhere_with_its_comment(mesh):
    job_id = await proposed(mesh)
    mesh.nodes[AIRLINE].jobs.decide(job_id, "", approve=True)
    mesh.nodes[REGISTRY].jobs.decide(job_id, "not before the audit", approve=False)
    rows = await ends(mesh, job_id)
    assert reasons(rows) == {("REJECTED", "APPROVAL_REFUSED", REGISTRY)}
    assert {row.failure["message"] for row in rows.values()} == {"not before the audit"}
    assert left_behind(mesh) == []
    assert await open_jobs(mesh) == []
    assert (await proven(mesh, rows[RESEARCH])).outcome.name == "REJECTED"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
async def test_the_first_word_counts(mesh, first, second):
    job_id = await proposed(mesh)
    jobs = mesh.nodes[AIRLINE].jobs
    jobs.decide(job_id, "", approve=first)
    await until(mesh, AIRLINE, job_id, party_state="APPROVED" if first else "REJECTED")
    with pytest.raises(TdnError) as error:
        jobs.decide(job_id, "", approve=second)
    assert error.value.reason is Reason.STATE_CONFLICT
    if first:
        mesh.nodes[REGISTRY].jobs.decide(job_id, "enough", approve=False)
    assert {row.state for row in (await ends(mesh, job_id)).values()} == {"REJECTED"}


async def test_what_is_answered_is_on_record(mesh):
    job_id = await proposed(mesh)
    jobs = mesh.nodes[AIRLINE].jobs
    jobs.decide(job_id, "", approve=True)
    await jobs.settled(job_id, 10)
    assert (await jobs.find(job_id)).party_state == "APPROVED"
    mesh.nodes[REGISTRY].jobs.decide(job_id, "", approve=False)
    await ends(mesh, job_id)


async def test_what_cannot_be_written_is_not_answered(mesh, monkeypatch):
    job_id = await proposed(mesh)
    jobs = mesh.nodes[AIRLINE].jobs
    run = jobs._runs[job_id]

    async def full():
        raise Unavailable(Reason.STORE_UNAVAILABLE, "the disk is full", "TDN-F-RCV-01")

    with monkeypatch.context() as patch:
        patch.setattr(run, "_write", full)
        jobs.decide(job_id, "", approve=True)
        with pytest.raises(Unavailable) as error:
            await jobs.settled(job_id, 10)
        assert error.value.reason is Reason.STORE_UNAVAILABLE
    await ends(mesh, job_id)


async def test_the_owner_of_the_flow_is_not_asked(mesh):
    job_id = await proposed(mesh)
    with pytest.raises(TdnError) as error:
        mesh.nodes[RESEARCH].jobs.decide(job_id, "", approve=True)
    assert error.value.reason is Reason.STATE_CONFLICT
    mesh.nodes[AIRLINE].jobs.decide(job_id, "", approve=False)
    await ends(mesh, job_id)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"left": "nothing"}, "there is no resource airline.shandong.cn/nothing"),
        ({"key": "ssn"}, "has no column ssn"),
        ({"key": "note"}, "does not offer note as a key"),
    ],
)
async def test_nobody_learns_what_there_is_before_a_human_has_decided(mesh, options, problem):
    """Not even that something is missing: the job waits as any other, and only the owner sees why it cannot run."""
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(**options))
    await until(mesh, REGISTRY, job_id, party_state="AWAITING_APPROVAL")
    jobs = mesh.nodes[AIRLINE].jobs
    async with asyncio.timeout(20):
        async for row in jobs.watch(job_id):
            if row.failure:
                break
    assert (row.party_state, row.failure["reason"]) == ("AWAITING_APPROVAL", "RESOURCE_UNKNOWN")
    assert problem in row.failure["message"]
    assert (await mesh.nodes[RESEARCH].jobs.find(job_id)).failure is None
    with pytest.raises(TdnError) as error:
        jobs.decide(job_id, "", approve=True)
    assert error.value.reason is Reason.RESOURCE_UNKNOWN
    assert problem in error.value.message
    jobs.decide(job_id, "no", approve=False)
    rows = await ends(mesh, job_id)
    assert reasons(rows) == {("REJECTED", "APPROVAL_REFUSED", AIRLINE)}
    assert {row.failure["message"] for row in rows.values()} == {"no"}


async def test_on_the_command_line(mesh):
    """As an operator does it: run, see, approve here, refuse there, look why."""
    flow_file = mesh.folder / RESEARCH / "flow.toml"
    flow_file.write_text(flow())
    code, out, err = await tdn(mesh, RESEARCH, "job", "run", flow_file, "--no-wait", "--json")
    assert code == 0, err
    job_id = json.loads(out)["job_id"]
    await until(mesh, AIRLINE, job_id, party_state="AWAITING_APPROVAL")
    await until(mesh, REGISTRY, job_id, party_state="AWAITING_APPROVAL")
    _, out, _ = await tdn(mesh, AIRLINE, "job", "ls", "--json")
    listed = {job["job_id"]: job for job in json.loads(out)["jobs"]}
    assert listed[job_id]["party_state"] == "AWAITING_APPROVAL"
    code, _, err = await tdn(mesh, AIRLINE, "job", "approve", job_id[:8])
    assert (code, job_id[:8] in err) == (0, True)
    code, _, err = await tdn(mesh, AIRLINE, "job", "approve", job_id[:8])
    assert (code, "STATE_CONFLICT" in err) == (5, True)
    code, _, err = await tdn(mesh, AIRLINE, "job", "approve", "ffff")
    assert (code, "JOB_UNKNOWN" in err) == (3, True)
    code, _, _ = await tdn(mesh, REGISTRY, "job", "approve", job_id, "--refuse", "--comment", "no, thanks")
    assert code == 0
    code, out, err = await tdn(mesh, RESEARCH, "job", "watch", job_id)
    assert code == 5
    assert "REJECTED" in out
    assert "no, thanks" in err
    assert {row.state for row in (await ends(mesh, job_id, PARTIES)).values()} == {"REJECTED"}
    flow_file.unlink()
