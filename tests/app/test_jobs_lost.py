"""Nodes that are away, come back, or come back with less than they had: jobs go on, or end alike everywhere."""

import asyncio
import contextlib

import pytest
import pytest_asyncio

from tdn_interop import config
from tdn_interop.app.data import results
from tdn_interop.app.evidence import wire
from tdn_interop.app.evidence.statements import VERDICT_KIND, Outcome
from tdn_interop.app.jobs.driver import Interruption
from tdn_interop.app.jobs.flow import check_limits, flow_from_toml
from tdn_interop.app.jobs.job_protocol import Computed, Start
from tdn_interop.app.jobs.job_wire import decode_message, encode_message
from tdn_interop.app.jobs.party import PartyState
from tdn_interop.app.store import jobs as rows
from tdn_interop.app.store import tables
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport.records_wire import decode_signed
from tests.app.job_mesh import (
    BOTH,
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
async def node_lost(mesh, monkeypatch, node, **options):
    """A job of research that `node` has left while all computed."""
    begun = asyncio.Event()

    async def never(*_):
        begun.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(mesh.nodes[AIRLINE].jobs._work, "run", never)
        job_id = await mesh.nodes[RESEARCH].jobs.run(flow(**options))
        async with asyncio.timeout(20):
            await begun.wait()
        for other in PARTIES:
            await until(mesh, other, job_id, party_state="RUNNING")
        await crash(mesh, node)
    yield job_id


async def post(mesh, sender, to, job_id, message):
    node = mesh.nodes[sender]
    body = encode_message(job_id, message)
    await node.jobs._store.run(lambda c: node.mesh.post.send_in(c, to, body, 60))
    node.mesh.post.wake(to)


async def works(mesh, path="next.csv"):
    found = await run(mesh, flow(path=path))
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    result(mesh, path)


def result(mesh, path):
    file = mesh.folder / RESEARCH / "results" / path
    assert file.read_text().split() == ["id", *BOTH]
    file.unlink()


@pytest.mark.parametrize("node", PARTIES)
async def test_a_node_that_comes_back_within_its_lease(mesh, monkeypatch, node):
    """The job goes on under the next epoch, and nobody has to do anything."""
    async with node_lost(
        mesh, monkeypatch, node, path="again.csv", lease_s=20, step_s=60, run_s=60
    ) as job_id:
        await mesh.start(node)
        found = await ends(mesh, job_id)
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    assert min(row.epoch for row in found.values()) > 1
    assert len({row.verdict for row in found.values()}) == 1
    for other in PARTIES:
        noted = [event for _, event in await mesh.nodes[other].jobs._records._log.about(job_id)]
        assert [event.facts for event in noted if event.kind == VERDICT_KIND] == [{"outcome": "SUCCEEDED"}]
    result(mesh, "again.csv")


async def test_a_node_that_dies_before_it_hears_of_the_start(mesh, monkeypatch):
    """What the others have sent for the epoch has died with it: it must not wait for that."""
    jobs, met = mesh.nodes[RESEARCH].jobs, asyncio.Event()
    real = mesh.nodes[RESEARCH].mesh.post.consumer

    async def deaf(parcel):
        if isinstance(decode_message(parcel.peer, parcel.body)[1], Start):
            met.set()
            await asyncio.Event().wait()
        await real(parcel)

    monkeypatch.setattr(mesh.nodes[RESEARCH].mesh.post, "consumer", deaf)
    job_id = await mesh.nodes[AIRLINE].jobs.run(flow(path="early.csv", run_s=60, step_s=60))
    async with asyncio.timeout(20):
        await met.wait()
        while not any(topic.startswith(f"task/{job_id}") for topic in waiting(mesh, RESEARCH)):
            await asyncio.sleep(0.01)
    assert jobs._runs[job_id].party.state is PartyState.READY
    await crash(mesh, RESEARCH)
    await mesh.start(RESEARCH)
    async with asyncio.timeout(40):
        found = await ends(mesh, job_id)
    assert {row.state for row in found.values()} == {"SUCCEEDED"}
    result(mesh, "early.csv")


def waiting(mesh, node):
    """Topics on which something has arrived that nobody has read."""
    return [topic for topic, queue in mesh.nodes[node].mesh.channels._inbox._queues.items() if queue]


async def test_a_session_that_fails_under_a_run(mesh, monkeypatch):
    """Nobody was killed; the run is repeated all the same."""
    begun = asyncio.Event()

    async def never(*_):
        begun.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(mesh.nodes[AIRLINE].jobs._work, "run", never)
        job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="session.csv", lease_s=20))
        await asyncio.wait_for(begun.wait(), 20)
        for node in PARTIES:
            await until(mesh, node, job_id, party_state="RUNNING")
    async with asyncio.timeout(
        20
    ):  # the registry sends its part to research over a session: it is there soon
        while REGISTRY not in mesh.nodes[RESEARCH].mesh.channels.peers():
            await asyncio.sleep(0.01)
    mesh.nodes[RESEARCH].mesh.channels.drop(REGISTRY)
    found = await ends(mesh, job_id)
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    assert {row.epoch for row in found.values()} == {2}
    result(mesh, "session.csv")


async def test_another_result_than_in_the_epoch_before(mesh, monkeypatch):
    """The same inputs cannot have one: the receiver does not deliver it."""
    write = results.write_keys
    changed = []

    def write_other(path, columns, items):
        changed.append(path)
        return write(path, columns, [*items][len(changed) - 1 :])

    monkeypatch.setattr(results, "write_keys", write_other)
    run_once = mesh.nodes[RESEARCH].jobs._work.run

    async def interrupted(part, epoch, progress):
        await run_once(part, epoch, progress)
        if epoch == 1:
            raise Interruption(Reason.SESSION_CLOSED, "the session was dropped")

    monkeypatch.setattr(mesh.nodes[RESEARCH].jobs._work, "run", interrupted)
    found = await run(mesh, flow(path="other.csv"))
    assert len(changed) == 2
    assert reasons(found) == {("FAILED", "DIGEST_MISMATCH", RESEARCH)}
    assert "result_file" not in found[RESEARCH].facts


async def test_a_coordinator_that_comes_back_too_late(mesh, monkeypatch):
    """The parties have ended without it, and take its verdict when it comes."""
    async with node_lost(mesh, monkeypatch, RESEARCH, step_s=1, stop_s=1, lease_s=1) as job_id:
        found = await ends(mesh, job_id, HOLDERS)
    for row in found.values():
        assert (row.state, row.party_state, row.failure["reason"]) == ("FAILED", "FAILED", "PARTY_LOST")
        assert RESEARCH in row.failure["message"]
        assert row.verdict is None
    for node in HOLDERS:
        mesh.nodes[node].jobs._drop(job_id)
    await mesh.start(RESEARCH)
    verdict = (await end(mesh, RESEARCH, job_id)).verdict
    assert wire.decode_verdict(decode_signed(verdict).statement).outcome is Outcome.FAILED
    async with asyncio.timeout(20):
        for node in HOLDERS:
            while (await mesh.nodes[node].jobs.find(job_id)).verdict != verdict:
                await asyncio.sleep(0.02)
    await works(mesh)


async def test_a_party_that_is_away_when_the_job_is_proposed(mesh):
    """It finds the proposal when it is back."""
    await mesh.stop(REGISTRY)
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path="offline.csv"))
    await until(mesh, AIRLINE, job_id, party_state="APPROVED")
    await mesh.start(REGISTRY)
    found = await ends(mesh, job_id)
    assert {row.state for row in found.values()} == {"SUCCEEDED"}, found[RESEARCH].failure
    result(mesh, "offline.csv")


async def test_a_name_that_nobody_has(mesh):
    text = flow().replace(REGISTRY, "nobody.guangdong.cn")
    with pytest.raises(TdnError) as error:
        await mesh.nodes[RESEARCH].jobs.run(text)
    assert error.value.reason is Reason.NO_ROUTE


async def test_whoever_asks_about_an_ended_job_hears_its_verdict(mesh, monkeypatch):
    """A party that missed the verdict reports again."""
    heard = []
    found = await run(mesh, flow(path="done.csv"))
    result(mesh, "done.csv")
    job_id = found[RESEARCH].job_id
    jobs = mesh.nodes[RESEARCH].jobs
    await jobs._leave(jobs._runs[job_id])
    monkeypatch.setattr(
        mesh.nodes[AIRLINE].jobs._runs[job_id], "receive", lambda message, _parcel: heard.append(message)
    )
    await post(mesh, AIRLINE, RESEARCH, job_id, Computed(AIRLINE, 1, 0))
    async with asyncio.timeout(20):
        while not heard:
            await asyncio.sleep(0.01)
    assert (heard[0].sender, heard[0].outcome) == (RESEARCH, Outcome.SUCCEEDED)
    assert heard[0].verdict == decode_signed(found[RESEARCH].verdict)


def damage(mesh, node, job_id, **changes):
    """Change an entry of the journal of a node that does not run."""
    store = Store.open(mesh.config(node).database_url)
    e = tables.job_events.c

    def write(connection):
        found = rows.events(connection, job_id)
        row = found[len(found) // 2]
        here = (e.job_id == job_id) & (e.idx == row.idx)
        connection.execute(tables.job_events.update().where(here), changes or {"body": b"\xff"})

    store._worker.submit(store._transact, write).result()
    store.close()


@pytest.mark.parametrize("changes", [{}, {"machine": "job"}, {"kind": "Begun"}, {"at_ms": 0, "idx": 999}])
@pytest.mark.parametrize("node", [AIRLINE, RESEARCH])
async def test_a_journal_that_is_damaged(mesh, monkeypatch, node, changes):
    """The job fails everywhere with one verdict, and says why."""
    async with node_lost(mesh, monkeypatch, node, lease_s=20, run_s=60) as job_id:
        damage(mesh, node, job_id, **changes)
        await mesh.start(node)
        found = await ends(mesh, job_id)
    assert reasons(found) == {("FAILED", "JOURNAL_BROKEN", node)}
    assert len({row.verdict for row in found.values()}) == 1
    await works(mesh)


@pytest.mark.parametrize("node", PARTIES)
async def test_a_journal_that_is_damaged_after_the_verdict(mesh, node):
    """Nobody states or decides twice: the verdict on record stays, and so does the result."""
    found = await run(mesh, flow(path="kept.csv"))
    before = found[node]
    await crash(mesh, node)
    damage(mesh, node, before.job_id)
    await mesh.start(node)
    row = await end(mesh, node, before.job_id)
    assert (row.state, row.party_state, row.verdict) == ("SUCCEEDED", "SUCCESS", before.verdict)
    result(mesh, "kept.csv")


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


@pytest.mark.parametrize("stage", ["approval_s", "step_s", "run_s", "stop_s", "lease_s"])
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
    """Its database is gone: its parties end without it. Last here: its log begins anew, nobody anchors it."""
    async with node_lost(mesh, monkeypatch, RESEARCH, step_s=2, stop_s=1, run_s=3000, lease_s=2) as job_id:
        for file in (mesh.folder / RESEARCH).glob("node.db*"):
            file.unlink()
        await mesh.start(RESEARCH)
        for node in HOLDERS:
            await post(mesh, node, RESEARCH, job_id, Computed(node, 1, 0))
        found = await ends(mesh, job_id, HOLDERS)
    assert {row.state for row in found.values()} == {"FAILED"}
    assert {row.failure["reason"] for row in found.values()} <= {"JOB_UNKNOWN", "PARTY_LOST"}
    assert all(row.ended_at_ms for row in found.values())
