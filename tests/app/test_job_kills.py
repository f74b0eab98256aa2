"""The job engine of a node is dropped at any moment and made again from what is on record: the job does not notice."""

import asyncio
import random

import pytest
import pytest_asyncio

from tdn_interop.app.evidence.statements import VERDICT_KIND
from tdn_interop.app.jobs.jobs import Jobs
from tdn_interop.app.post.post import Parcel
from tdn_interop.app.store import post as post_rows
from tests.app.job_mesh import BOTH, PARTIES, flow, job_mesh, left_behind, open_jobs, proven
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
# A party takes 13 turns in a job, the coordinator about twice as many.
TURNS = [*range(1, 14), 16, 19, 22]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with job_mesh(tmp_path_factory.mktemp("mesh")) as running:
        yield running


class Killer:
    """Drops the jobs of `node` at its turns `when`: just before the record of the turn, or just after it."""

    def __init__(self, mesh, node, when, *, recorded):
        self.node, self.when, self.recorded = mesh.nodes[node], set(when), recorded
        self.turns = self.kills = 0
        self.revived = asyncio.Event()
        self.revived.set()
        self._watch()

    def _watch(self):
        records = self.node.jobs._records
        real = records.write

        async def write(run):
            self.turns += bool(run.pending)
            killed = bool(run.pending) and self.turns in self.when
            if self.recorded or not killed:
                await real(run)
            if not killed:
                return
            self.kills += 1
            self.revived.clear()
            self._task = asyncio.create_task(self._again())
            await asyncio.Event().wait()

        records.write = write

    async def _again(self):
        """As a process that is killed and started: nothing in memory stays, nothing is said to anybody."""
        old, mesh = self.node.jobs, self.node.mesh
        mesh.listeners.remove(old._on_channel)
        mesh.post.consumer = hold = Hold()
        await old.close()
        made = Jobs(mesh, old._store, old._records._log, self.node.resources, old._records._metrics)
        self.node.jobs = made
        await made.recall()
        mesh.post.consumer = hold
        self._watch()
        await made.start()
        for row in await old._store.run(post_rows.every_in):
            await made._arrived(Parcel(row.peer, row.number, row.body))
        mesh.post.consumer = made._arrived
        for parcel in hold.parcels[:]:
            if any(row.number == parcel.number for row in await old._store.run(post_rows.every_in)):
                await made._arrived(parcel)
        self.revived.set()


class Hold:
    """Keeps the parcels that come while nobody is there."""

    def __init__(self):
        self.parcels = []

    async def __call__(self, parcel):
        self.parcels.append(parcel)


async def run_with(mesh, killers, path):
    """The records of the job at its end."""
    job_id = await mesh.nodes[RESEARCH].jobs.run(flow(path=path, lease_s=20))
    rows = {}
    async with asyncio.timeout(50):
        for node in PARTIES:
            while node not in rows:
                for killer in killers:
                    await killer.revived.wait()
                row = next((r for r in await mesh.nodes[node].jobs.every() if r.job_id == job_id), None)
                if row and row.ended_at_ms:
                    rows[node] = row
                await asyncio.sleep(0.02)
    return rows


async def assert_fine(mesh, rows, path):
    """One verdict, the right result once, and nothing else is left."""
    assert {row.state for row in rows.values()} == {"SUCCEEDED"}, rows[RESEARCH].failure
    assert len({row.verdict for row in rows.values()}) == 1
    file = mesh.folder / RESEARCH / "results" / path
    assert file.read_text().split() == ["id", *BOTH]
    file.unlink()
    assert left_behind(mesh) == []
    assert await open_jobs(mesh) == []
    for node, row in rows.items():
        noted = [event.kind for _, event in await mesh.nodes[node].jobs._records._log.about(row.job_id)]
        assert noted.count(VERDICT_KIND) == 1
    assert [party.stated.name for party in (await proven(mesh, rows[RESEARCH])).parties] == ["SUCCEEDED"] * 3


@pytest.mark.parametrize(("turn", "recorded"), [(turn, turn % 2 == 1) for turn in TURNS])
async def test_everybody_is_killed_at_the_same_turn(mesh, turn, recorded):
    killers = [Killer(mesh, node, {turn}, recorded=recorded) for node in PARTIES]
    rows = await run_with(mesh, killers, "killed.csv")
    await assert_fine(mesh, rows, "killed.csv")
    for killer in killers:
        killer.when = set()


@pytest.mark.parametrize("seed", range(3))
async def test_killed_several_times(mesh, seed):
    chance = random.Random(seed)
    killers = [
        Killer(mesh, node, {chance.randrange(1, 15) for _ in range(3)}, recorded=chance.random() < 0.5)
        for node in (AIRLINE, REGISTRY, RESEARCH)
    ]
    rows = await run_with(mesh, killers, "often.csv")
    await assert_fine(mesh, rows, "often.csv")
    assert sum(killer.kills for killer in killers) > 2
    for killer in killers:
        killer.when = set()


async def test_killed_for_ever(mesh):
    """Each run costs an epoch; when there are no more, the job fails everywhere with one verdict."""
    killers = [Killer(mesh, AIRLINE, range(7, 500), recorded=True)]
    rows = await run_with(mesh, killers, "never.csv")
    for killer in killers:
        killer.when = set()
    assert {row.state for row in rows.values()} == {"FAILED"}
    assert len({row.verdict for row in rows.values()}) == 1
    assert rows[RESEARCH].failure["reason"] == "PARTY_LOST"
    assert left_behind(mesh) == []
