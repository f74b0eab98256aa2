"""The main job, on a lab of its own: real nodes, real certificates, real data; nothing in it is mocked.

An airline and an aircraft register, each behind another hub, let a research institute that holds no data
learn which aircraft both know. Each of the two learns how many the other has, and nothing else.
"""

from __future__ import annotations

import contextlib
import csv
import importlib.resources
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tdn_interop.app.control.control_client import Document, failure_of
from tdn_interop.app.evidence import bundle as bundles
from tdn_interop.app.jobs import flow as flows
from tdn_interop.app.lab.lab import Lab, Note
from tdn_interop.errors import ConfigError, LocalProtocolError, Reason, guard
from tdn_interop.transport.trust import Membership

TOP, AIRLINE, REGISTRY, RESEARCH = (
    "cn",
    "airline.shandong.cn",
    "registry.guangdong.cn",
    "research.shandong.cn",
)
TABLES = {
    AIRLINE: ("operations", "airline_operations.csv"),
    REGISTRY: ("aircraft", "aircraft_registry.csv"),
}
FLOW = f"""\
name = "common-aircraft"
parties = ["{AIRLINE}", "{REGISTRY}", "{RESEARCH}"]

[[tasks]]
name = "match"
algorithm = "psi"
receivers = ["{RESEARCH}"]
output = {{ path = "common-aircraft.csv" }}

[[tasks.inputs]]
party = "{AIRLINE}"
resource = "operations"
keys = ["tailnum"]

[[tasks.inputs]]
party = "{REGISTRY}"
resource = "aircraft"
keys = ["tailnum"]
"""

# Which part of the whole each phase takes, as measured; only the progress bar uses it.
SHARES = {"network": 0.6, "data": 0.05, "job": 0.2, "evidence": 0.05, "stop": 0.1}


@dataclass(slots=True)
class Clock:
    """Times the phases, and tells `note` (phase, part of everything that is done)."""

    note: Note
    seconds: dict[str, float] = field(default_factory=dict)
    _done: float = 0.0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[Callable[[float], None]]:
        """Within the block a phase runs; call with the part of it that is done."""
        share, begin = SHARES[name], time.perf_counter()
        self.note(name, self._done)
        try:
            yield lambda part: self.note(name, self._done + share * part)
        finally:
            self._done += share
            self.seconds[name] = time.perf_counter() - begin


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it. The files stay when the network is gone."""

    document: Document
    seconds: dict[str, float]
    result: Path
    top_key: Path


async def run(lab: Lab, out: Path, note: Note) -> Report:
    """Bring up `lab`, run the job, keep its papers below `out`, take the lab down.

    Errors: those of the lab, the nodes and the evidence; whatever happens, no node is left running.
    """
    clock = Clock(note)
    _usable(out)
    with clock.phase("network") as part:
        await lab.up("mini", lambda _node, up: part(up))
    try:
        with clock.phase("data"):
            await _register(lab)
        with clock.phase("job") as part:
            job_id = await _propose(lab)
            views = {node: await _ended(lab, node, job_id, part) for node in (RESEARCH, AIRLINE, REGISTRY)}
        with clock.phase("evidence"):
            folder = out / job_id
            evidence = await _evidence(lab, job_id, folder)
            result = _keep_result(views[RESEARCH], folder)
    finally:
        with clock.phase("stop"):
            await lab.down()
    job = views[RESEARCH]
    document = {
        "intersection": _rows(result), "recipient": ", ".join(job["recipients"]),
        "hops": max(view["hops"] for view in views.values()), "suite": job["suite"],
        "seconds": round(sum(clock.seconds.values()), 2),
        "nodes": [_learned(node.id, node.role, views) for node in lab.nodes], "evidence": evidence,
    }  # fmt: skip
    return Report(document, clock.seconds, result, folder / "top.key")


def _usable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        guard("TDN-X-LAB-08").refuse(
            Reason.INPUT_INVALID, f"{out} cannot be made: {error.strerror}", ConfigError
        )


async def _register(lab: Lab) -> None:
    samples = importlib.resources.files("tdn_interop.app.data") / "samples"
    for node, (name, file) in TABLES.items():
        with importlib.resources.as_file(samples / file) as path:
            async with lab.client(node) as client:
                await client.register(name, str(path), ["tailnum"], "utf-8", ",")


async def _propose(lab: Lab) -> str:
    async with lab.client(RESEARCH) as client:
        job_id: str = (await client.run_job(FLOW))["job_id"]
        return job_id


async def _ended(lab: Lab, node: str, job_id: str, part: Callable[[float], None]) -> Document:
    """The job as `node` sees it in the end. Errors: its failure."""
    view: Document = {"state": ""}
    async with lab.client(node) as client:
        async for view in client.watch(job_id):
            part(view["progress"])
    failure = failure_of(view) if view["state"] else None
    if failure is not None:
        raise failure
    guard("TDN-X-LAB-10").check(
        view["state"] == "SUCCEEDED", Reason.INTERNAL, f"the job ended as {view['state']}", LocalProtocolError
    )
    return view


async def _evidence(lab: Lab, job_id: str, folder: Path) -> Document:
    """Fetch the bundle, verify it with nothing but the key of the top, keep both."""
    async with lab.client(RESEARCH) as client:
        bundle, _ = await client.bundle(job_id)
    key = Membership.load(lab.config(TOP).file("membership.json")).top_identity_key
    verified = bundles.verify(bundle, key)
    _keep(folder, {"evidence.bundle": bundle, "top.key": f"{key.hex()}\n".encode()})
    guard("TDN-X-LAB-10").check(
        (verified.job_id, verified.outcome.name) == (job_id, "SUCCEEDED"), Reason.EVIDENCE_BROKEN,
        f"the bundle proves {verified.outcome.name} of {verified.job_id}",
    )  # fmt: skip
    return {"verified": True, "bundle": str(folder / "evidence.bundle"), "bytes": len(bundle)}


def _keep(folder: Path, papers: dict[str, bytes]) -> None:
    folder.mkdir()
    for name, content in papers.items():
        (folder / name).write_bytes(content)


def _keep_result(view: Document, folder: Path) -> Path:
    result = folder / "common-aircraft.csv"
    shutil.copyfile(view["facts"]["result_file"], result)
    return result


def _rows(table: Path) -> int:
    with table.open(newline="", encoding="utf-8") as file:
        return sum(1 for _ in csv.DictReader(file))


def _learned(node: str, role: str, views: dict[str, Document]) -> Document:
    """Whose numbers of keys a node noted, and how many are common; who only relays has no part in the job."""
    facts = views[node]["facts"] if node in views else {}
    names = {f"items.{part}": holder for holder, part in _roles().items()} | {"matches": "common"}
    learned = {name: int(facts[fact]) for fact, name in names.items() if fact in facts and name != node}
    return {"id": node, "role": role, "learned": learned}


def _roles() -> dict[str, str]:
    return flows.roles(flows.only_task(flows.flow_from_toml(FLOW)))
