"""kill -9 of every party in every phase of a job, real processes and real data: the result is the same."""

import asyncio
import csv
import importlib.resources
import tempfile

import pytest
import pytest_asyncio

from tdn_interop.app.control.control_client import failure_of
from tdn_interop.app.evidence.bundle import verify
from tdn_interop.app.lab.lab import Lab
from tests.mesh import AIRLINE, REGISTRY, RESEARCH

pytestmark = pytest.mark.asyncio(loop_scope="module")
PARTIES = (AIRLINE, REGISTRY, RESEARCH)
# The airline coordinates, a human decides at the registry, only research receives.
TABLES = {AIRLINE: "airline_operations.csv", REGISTRY: "aircraft_registry.csv"}
FLOW = f"""
name = "common-tails"
parties = ["{AIRLINE}", "{REGISTRY}", "{RESEARCH}"]
[[tasks]]
name = "psi"
algorithm = "psi"
receivers = ["{RESEARCH}"]
inputs = [
  {{ party = "{AIRLINE}", resource = "tails", keys = ["tailnum"] }},
  {{ party = "{REGISTRY}", resource = "tails", keys = ["tailnum"] }},
]
[tasks.output]
path = "PATH"
"""
PHASES = {
    "AWAITING_APPROVAL": {"AWAITING_APPROVAL", "APPROVED"},
    "RUNNING": {"RUNNING"},
    "COMPUTED": {"COMPUTED", "SUCCESS"},
}
# Each job meets three kills; together every party is killed in every phase.
KILLS = [dict(zip(PHASES, PARTIES[turn:] + PARTIES[:turn], strict=True)) for turn in range(3)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    (folder / "tmp").mkdir()
    samples = importlib.resources.files("tdn_interop.app.data") / "samples"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "tmp"))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        made = Lab(folder / "lab")
        await made.up("mini")
        try:
            file = made.directory / REGISTRY / "node.toml"
            file.write_text(file.read_text().replace('mode = "rules"', 'mode = "manual"'))
            await made.kill(REGISTRY)
            await made.start(REGISTRY)
            for node, name in TABLES.items():
                with importlib.resources.as_file(samples / name) as path:
                    async with made.client(node) as client:
                        await client.register("tails", str(path), ["tailnum"], "utf-8", ",")
            yield made
        finally:
            await made.down()


async def seen(lab, node, job_id, states):
    """The job at `node` as soon as its part is in one of the states or it has ended."""
    async with asyncio.timeout(60), lab.client(node) as client:
        while True:
            views = {view["job_id"]: view for view in (await client.jobs())["jobs"]}
            view = views.get(job_id)
            if view and (view["party_state"] in states or int(view["ended_at_ms"])):
                return view
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kills", KILLS, ids=lambda kills: "-".join(kills.values()))
async def test_three_kills_in_one_job(lab, kills):
    name = f"{kills['RUNNING']}.csv"
    async with lab.client(AIRLINE) as client:
        job_id = (await client.run_job(FLOW.replace("PATH", name)))["job_id"]
    for phase, victim in kills.items():
        await seen(lab, victim, job_id, PHASES[phase])
        await lab.kill(victim)
        await lab.start(victim)
        if phase == "AWAITING_APPROVAL":
            await seen(lab, REGISTRY, job_id, {"AWAITING_APPROVAL"})
            async with lab.client(REGISTRY) as client:
                await client.decide(job_id, "fine", approve=True)
    views = [await seen(lab, node, job_id, ()) for node in PARTIES]
    assert {view["state"] for view in views} == {"SUCCEEDED"}, [failure_of(view) for view in views]
    with (lab.directory / RESEARCH / "results" / name).open(newline="") as file:
        assert len(list(csv.reader(file))) == 3316 + 1
    assert len(list((lab.directory / RESEARCH / "results").iterdir())) == KILLS.index(kills) + 1
    async with lab.client(AIRLINE) as client:
        bundle, key = await client.bundle(job_id)
    assert [party.stated.name for party in verify(bundle, key).parties] == ["SUCCEEDED"] * 3
