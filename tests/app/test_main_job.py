"""The main job on real data: three parties, two hubs, three relays, one recipient."""

import csv
import importlib.resources

import pytest

from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.bundle import verify
from tests.mesh import AIRLINE, REGISTRY, RESEARCH, mini_mesh

SAMPLES = importlib.resources.files("tdn_interop.app.data") / "samples"
FLOW = f"""
name = "common-tails"
parties = ["{AIRLINE}", "{REGISTRY}", "{RESEARCH}"]
[[tasks]]
name = "psi"
algorithm = "psi"
receivers = [RECEIVERS]
inputs = [
  {{ party = "{AIRLINE}", resource = "operations", keys = ["tailnum"] }},
  {{ party = "{REGISTRY}", resource = "register", keys = ["tailnum"] }},
]
[tasks.output]
path = "common.csv"
"""


def tails(name):
    with (SAMPLES / name).open(newline="") as file:
        return [row["tailnum"] for row in csv.DictReader(file)]


async def run(mesh, coordinator, receivers):
    flow = FLOW.replace("RECEIVERS", ", ".join(f'"{r}"' for r in receivers))
    if RESEARCH not in receivers:
        flow = flow.replace(f', "{RESEARCH}"', "")
    for node, name, file in (
        (AIRLINE, "operations", "airline_operations.csv"),
        (REGISTRY, "register", "aircraft_registry.csv"),
    ):
        await mesh.nodes[node].resources.register(name, SAMPLES / file, CsvFormat(), ["tailnum"])
    jobs = mesh.nodes[coordinator].jobs
    job_id = await jobs.run(flow)
    async for row in jobs.watch(job_id):
        last = row
    return last


def result(mesh, node):
    with (mesh.folder / node / "results" / "common.csv").open(newline="") as file:
        return [row["tailnum"] for row in csv.DictReader(file)]


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path) as running:
        yield running


async def test_only_the_third_party_gets_the_intersection(mesh):
    row = await run(mesh, RESEARCH, [RESEARCH])
    both = sorted(set(tails("airline_operations.csv")) & set(tails("aircraft_registry.csv")))
    assert row.state == "SUCCEEDED"
    assert len(both) == 3316
    assert result(mesh, RESEARCH) == both
    assert row.facts["items.holder_a"] == "4037"
    assert row.facts["items.holder_b"] == "3322"
    for holder in (AIRLINE, REGISTRY):
        assert not (mesh.folder / holder / "results").exists()
        seen = (await mesh.nodes[holder].jobs.find(row.job_id)).facts
        assert "matches" not in seen
    key = mesh.nodes[RESEARCH].mesh.standing.membership.top_identity_key
    bundle = await mesh.nodes[RESEARCH].jobs.bundle(row.job_id)
    assert len(bundle) <= 8192
    proven = verify(bundle, key)
    assert [(p.node, p.stated.name, len(p.logs)) for p in proven.parties] == [
        (node, "SUCCEEDED", 3) for node in sorted([AIRLINE, REGISTRY, RESEARCH])
    ]
    views = [await mesh.nodes[node].jobs.find(row.job_id) for node in (AIRLINE, REGISTRY, RESEARCH)]
    assert max(view.hops for view in views) == 3


@pytest.mark.parametrize("receivers", [[AIRLINE], [REGISTRY], [AIRLINE, REGISTRY]])
async def test_holders_get_their_own_rows(mesh, receivers):
    row = await run(mesh, AIRLINE, receivers)
    assert row.state == "SUCCEEDED", row.failure
    files = {AIRLINE: "airline_operations.csv", REGISTRY: "aircraft_registry.csv"}
    both = set(tails(files[AIRLINE])) & set(tails(files[REGISTRY]))
    for node, file in files.items():
        if node in receivers:
            assert result(mesh, node) == [tail for tail in tails(file) if tail in both]
        else:
            assert not (mesh.folder / node / "results").exists()
