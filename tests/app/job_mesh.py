"""Jobs on the mini mesh: small tables, a flow in one call, how a job ended everywhere, what it left behind."""

import asyncio
import contextlib
import json
import sys

from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.bundle import verify
from tests.mesh import AIRLINE, REGISTRY, RESEARCH, Mesh, mini_mesh

PARTIES = (AIRLINE, REGISTRY, RESEARCH)
LEFT, RIGHT = range(40), range(30, 60)
BOTH = [f"k{n}" for n in range(30, 40)]
TDN = [sys.executable, "-c", "from tdn_interop.app.cli import main; main()"]
# What a running node keeps in its folder; anything else was put out by a job or a transfer.
OWN_FILES = {
    "node.toml", "node.db", "node.db-wal", "node.db-shm", "node.lock", "identity.key", "membership.json",
    "left.csv", "right.csv",
}  # fmt: skip
KEPT_BY_NODES = (".pem", ".key")


def text_of(keys, column="id"):
    return "".join(f"{line}\n" for line in [f"{column},note", *(f"k{key},n" for key in keys)])


def flow(receivers=(RESEARCH,), *, left="left", right="right", key="id", path="", suites=(), **timeouts):
    """TOML of a PSI between the airline and the registry for `receivers`."""
    times = {"approval_s": 20, "step_s": 10, "run_s": 20, "stop_s": 1, "lease_s": 20} | timeouts
    parties = dict.fromkeys((AIRLINE, REGISTRY, *receivers))
    return f"""
name = "overlap"
parties = {json.dumps(list(parties))}
[timeouts]
{chr(10).join(f"{name} = {value}" for name, value in times.items())}
[[tasks]]
name = "psi"
algorithm = "psi"
receivers = {json.dumps(list(receivers))}
suites = {json.dumps(list(suites))}
inputs = [
  {{ party = "{AIRLINE}", resource = "{left}", keys = ["{key}"] }},
  {{ party = "{REGISTRY}", resource = "{right}", keys = ["{key}"] }},
]
output = {{ path = {json.dumps(path)} }}
"""


@contextlib.asynccontextmanager
async def job_mesh(folder):
    """A mini mesh whose holders have registered `left` and `right`."""
    async with mini_mesh(folder) as mesh:
        for node, name, keys in ((AIRLINE, "left", LEFT), (REGISTRY, "right", RIGHT)):
            await table(mesh, node, name, text_of(keys))
        yield mesh


async def table(mesh: Mesh, node, name, text, keys=("id",)):
    """Write and register a table; its path."""
    path = mesh.folder / node / f"{name}.csv"
    path.write_text(text)
    await mesh.nodes[node].resources.register(name, path, CsvFormat(), keys)
    return path


async def restart(mesh: Mesh, node, *changes):
    """Start `node` again with each (old, new) text of its configuration replaced; the text before."""
    file = mesh.folder / node / "node.toml"
    before = text = file.read_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    if node in mesh.nodes:
        await mesh.stop(node)
    file.write_text(text)
    await mesh.start(node)
    return before


async def end(mesh: Mesh, node, job_id):
    """The record of the job at `node` when it has ended."""
    async with asyncio.timeout(60):
        await _arrived(mesh, node, job_id)
        async for row in mesh.nodes[node].jobs.watch(job_id):
            last = row
    return last


async def ends(mesh: Mesh, job_id, nodes=PARTIES):
    """The records of the job at `nodes` when it has ended at each."""
    rows = await asyncio.gather(*(end(mesh, node, job_id) for node in nodes))
    return dict(zip(nodes, rows, strict=True))


async def until(mesh: Mesh, node, job_id, *, state=None, party_state=None):
    """Wait until `node` sees the job so; the record then."""
    async with asyncio.timeout(30):
        await _arrived(mesh, node, job_id)
        async for row in mesh.nodes[node].jobs.watch(job_id):
            if row.state == (state or row.state) and row.party_state == (party_state or row.party_state):
                return row
    raise AssertionError(f"{node}: the job has ended as {row.state} {row.party_state}: {row.failure}")


async def _arrived(mesh, node, job_id):
    """Wait for the proposal: before it is there, nobody at the node can watch the job."""
    while all(row.job_id != job_id for row in await mesh.nodes[node].jobs.every()):
        await asyncio.sleep(0.01)


async def run(mesh: Mesh, text, coordinator=RESEARCH, nodes=PARTIES):
    """Run a flow to its end everywhere; the records."""
    return await ends(mesh, await mesh.nodes[coordinator].jobs.run(text), nodes)


def left_behind(mesh: Mesh):
    """Every file below the nodes' folders that is not their own."""
    found = (path for node in mesh.nodes for path in (mesh.folder / node).rglob("*") if path.is_file())
    return sorted(
        str(path.relative_to(mesh.folder))
        for path in found
        if path.name not in OWN_FILES and path.suffix not in KEPT_BY_NODES and "notices" not in path.parts
    )


async def open_jobs(mesh: Mesh):
    """(node, job) for every record that has not ended."""
    return [
        (name, row.job_id)
        for name, node in mesh.nodes.items()
        for row in await node.jobs.every()
        if not row.ended_at_ms
    ]


def reasons(rows):
    """What the parties say why the job did not succeed: one (state, reason, who noticed) if they agree."""
    return {(row.state, row.failure["reason"], row.failure["noticed_by"]) for row in rows.values()}


async def proven(mesh: Mesh, row):
    """The verified bundle of a job."""
    node = mesh.nodes[row.coordinator]
    return verify(await node.jobs.bundle(row.job_id), node.mesh.standing.membership.top_identity_key)


async def tdn(mesh: Mesh, node, *words):
    """Run the command line at `node`; (exit code, stdout, stderr)."""
    process = await asyncio.create_subprocess_exec(
        *TDN, *map(str, words), "--config", str(mesh.folder / node / "node.toml"),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()
