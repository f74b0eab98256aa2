"""One run of a whole network under taps: canary tables, jobs that succeed and jobs that fail, all that was seen.

Real processes; a recording proxy on every link, a curious top and curious hubs, parties that note what
their machines hold. The tables lie outside of the nodes' folders: a node keeps no copy of them.
"""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import io
import json
import random
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization

from tdn_interop.app.control.control_client import Document
from tdn_interop.app.data.keys import encode_key
from tdn_interop.app.lab.lab import Lab
from tdn_interop.errors import TdnError
from tests.interop.scanner import forms
from tests.interop.taps import Notes, Proxies, command
from tests.mesh import AIRLINE, HUB_1, HUB_2, REGISTRY, RESEARCH, TOP, free_address

HUBS = (TOP, HUB_1, HUB_2)
PARTIES = (AIRLINE, REGISTRY, RESEARCH)
RUN_S = 60.0  # measured: 9 s
COLUMNS = ("id", "tail", "note")
_dice = random.Random("canaries")
# What everybody may see. As the name of a node it is asked for, so hubs must have seen it.
CONTROL = base64.b32encode(_dice.randbytes(20)).decode().lower()


def canary() -> str:
    """160 random bits that can stand in a table."""
    return base64.b32encode(_dice.randbytes(20)).decode()


@dataclass(frozen=True)
class Table:
    """A table of canaries and its owner. `spoilt` is put behind the rows and breaks the file."""

    name: str
    owner: str
    ids: tuple[str, ...]
    spoilt: str = ""
    rows: tuple[tuple[str, ...], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple((key, canary(), canary()) for key in self.ids))

    @property
    def text(self) -> str:
        return "\n".join([",".join(COLUMNS), *map(",".join, self.rows), self.spoilt])

    @property
    def items(self) -> list[bytes]:
        return [encode_key([key]) for key in self.ids]

    def secrets(self) -> Iterator[tuple[str, bytes]]:
        """(TABLE/OWNER/ID/WHAT, value): keys, their bytes, fields, rows, and the digest of the file."""
        named = f"{self.name}/{self.owner}"
        yield from digests(f"{named}/", self.text.encode())
        for row in self.rows:
            values = dict(zip(COLUMNS, row, strict=True)) | {"row": ",".join(row)}
            for what, value in values.items():
                yield f"{named}/{row[0]}/{what}", value.encode()
            yield f"{named}/{row[0]}/item", encode_key([row[0]])
        for number, value in enumerate(re.findall(r"\w+", self.spoilt)):
            yield f"{named}/spoilt/{number}", value.encode()


def digests(name: str, content: bytes) -> Iterator[tuple[str, bytes]]:
    """The digest that a node keeps of a file, and half of it: enough to try out what is in there."""
    digest = hashlib.sha256(content).digest()
    yield f"{name}/digest", digest
    yield f"{name}/half digest", digest[:8]


def pair(name: str, own: int, common: int) -> tuple[Table, Table]:
    """Two tables of `own` + `common` rows that share `common` keys and nothing else."""
    both = [canary() for _ in range(common)]
    left, right = ([*both, *(canary() for _ in range(own))] for _ in range(2))
    _dice.shuffle(right)
    return Table(name, AIRLINE, tuple(left)), Table(name, REGISTRY, tuple(right))


TABLES = {
    "external": pair("external", 180, 60),
    "both": pair("both", 150, 50),
    "disjoint": pair("disjoint", 40, 0),
    "complete": pair("complete", 0, 40),
    "changed": pair("changed", 20, 20),
}
# Not registered: a row too long, and a key that holds a noncharacter.
REFUSED = (
    Table("malformed", AIRLINE, (canary(),), spoilt=",".join(canary() for _ in range(4))),
    Table("invalid", AIRLINE, (canary(),), spoilt=f"{canary()}\uffff,{canary()},{canary()}"),
)
# job: (tables, receivers, key column). The second job repeats the first; names of equal length make equal messages.
JOBS = {
    "external": ("external", (RESEARCH,), "id"),
    "again": ("external", (RESEARCH,), "id"),
    "both": ("both", (AIRLINE, REGISTRY), "id"),
    "disjoint": ("disjoint", (RESEARCH,), "id"),
    "complete": ("complete", (RESEARCH,), "id"),
    "no-column": ("external", (RESEARCH,), "passport"),
    "changed": ("changed", (RESEARCH,), "id"),
    "cancelled": ("external", (RESEARCH,), "id"),
}


@dataclass
class World:
    """All that was seen. `haystacks` holds files by place: taps, hub NODE, live NODE, left NODE, and others."""

    lab: Lab
    taps: Path
    jobs: dict[str, Document] = field(default_factory=dict)
    refusals: list[TdnError] = field(default_factory=list)
    haystacks: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def notes(self, node: str) -> Notes:
        return Notes.of(self.taps / node)

    def agreement(self, job: str) -> str:
        """The digest that a job's machines were bound to, as the receiver or a holder noted it."""
        wanted = f"task/{self.jobs[job]['job_id']}/"
        runs = [line for node in PARTIES for line in self.notes(node).about("run")]
        return next(line["agreement"] for line in runs if line["topic"].startswith(wanted))

    def look(self, place: str, folder: Path) -> None:
        self.haystacks[place] = {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }


def secrets(world: World) -> dict[str, bytes]:
    """Everything that must stay where it is: tables, private keys, what the machines drew."""
    found = {
        name: value
        for table in [*(table for two in TABLES.values() for table in two), *REFUSED]
        for name, value in table.secrets()
    }
    for node in (*HUBS, *PARTIES):
        for file in (world.lab.directory / node).glob("*.key"):
            found[f"private/{node}/{file.name}"] = _private_bytes(file)
    for node in PARTIES:
        for number, line in enumerate(world.notes(node).about("secret")):
            found[f"drawn/{node}/{number}"] = bytes.fromhex(line["value"])
    for job in JOBS:
        for node, content in results(world, job).items():
            if job != "disjoint":  # anybody knows what an empty result is
                found |= digests(f"result/{node}/{job}", content)
    return found


def results(world: World, job: str) -> dict[str, bytes]:
    """The result of a job at each node that has one."""
    name = f"results/{world.jobs[job]['job_id']}.csv"
    left = {node: world.haystacks[f"left {node}"] for node in PARTIES}
    return {node: files[name] for node, files in left.items() if name in files}


def _private_bytes(file: Path) -> bytes:
    """The bytes that are the key: Ed25519, P-256, or the seed of the sealing key."""
    if file.name == "sealing.key":
        return bytes.fromhex(json.loads(file.read_text())[0]["seed"])
    key = serialization.load_pem_private_key(file.read_bytes(), None)
    if hasattr(key, "private_bytes_raw"):
        return key.private_bytes_raw()
    return key.private_numbers().private_value.to_bytes(32, "big")


def flow(job: str) -> str:
    """The flow of a job. An external receiver proposes it, otherwise the airline."""
    table, receivers, key = JOBS[job]
    parties = dict.fromkeys((AIRLINE, REGISTRY, *receivers))
    inputs = ", ".join(
        f'{{ party = "{table.owner}", resource = "{table.name}", keys = ["{key}"] }}'
        for table in TABLES[table]
    )
    return f"""
name = "{job}"
parties = {json.dumps(list(parties))}
[[tasks]]
name = "psi"
algorithm = "psi"
receivers = {json.dumps(list(receivers))}
inputs = [{inputs}]
"""


async def scenario(folder: Path) -> World:
    """The whole run; afterwards nothing runs."""
    proxied, recorded, metrics = folder / "proxies", folder / "recorded", free_address()
    proxied.mkdir()
    proxies = Proxies(proxied)
    world = World(
        Lab(folder / "lab", command(recorded, {HUB_1: f"TDN_METRICS={metrics}"}), proxies), recorded
    )
    await world.lab.up("mini")
    try:
        async with asyncio.timeout(RUN_S):
            await _register(world, folder)
            for job in JOBS:
                await _run(world, job)
            await _controls(world, proxies)
        with urllib.request.urlopen(f"http://{metrics}/metrics") as answer:
            world.haystacks["metrics"] = {HUB_1: await asyncio.to_thread(answer.read)}
        for node in (*HUBS, *PARTIES):  # with the write-ahead logs of the databases
            world.look(f"live {node}", world.lab.directory / node)
    finally:
        await world.lab.down()
        await proxies.close()
    for node in (*HUBS, *PARTIES):
        world.look(f"left {node}", world.lab.directory / node)
    for node in HUBS:
        world.look(f"hub {node}", recorded / node)
    world.look("taps", proxied)
    return world


async def _register(world: World, folder: Path) -> None:
    for table in (table for two in TABLES.values() for table in two):
        await _register_one(world, folder, table)
    for table in REFUSED:
        try:
            await _register_one(world, folder, table)
        except TdnError as error:
            world.refusals.append(error)
    with (folder / f"changed-{AIRLINE}.csv").open("a") as file:
        file.write(f"\n{canary()},{canary()},{canary()}\n")


async def _register_one(world: World, folder: Path, table: Table) -> None:
    path = folder / f"{table.name}-{table.owner}.csv"
    path.write_text(table.text)
    async with world.lab.client(table.owner) as client:
        await client.register(table.name, str(path), ["id"], "utf-8", ",")


async def _run(world: World, job: str) -> None:
    """Run a job to its end at every party, and keep how it ended and its bundle."""
    receivers = JOBS[job][1]
    coordinator = RESEARCH if RESEARCH in receivers else AIRLINE
    async with world.lab.client(coordinator) as client:
        job_id = (await client.run_job(flow(job)))["job_id"]
        if job == "cancelled":
            await client.cancel(job_id, "a test")
        async for view in client.watch(job_id):
            world.jobs[job] = view
        if view["state"] == "SUCCEEDED":
            world.haystacks.setdefault("bundles", {})[job] = (await client.bundle(job_id))[0]
    for node in {AIRLINE, REGISTRY, *receivers} - {coordinator}:
        async with world.lab.client(node) as client:
            async for _ in client.watch(job_id):
                continue


async def _controls(world: World, proxies: Proxies) -> None:
    """Put the control where it must be seen: on every link, in the hands of the hubs, in every folder."""
    planted = b"\n".join(forms(CONTROL.encode()).values())
    for front in proxies.fronts.values():
        reader, writer = await asyncio.open_connection(*front.split(":"))
        writer.write(planted)
        await reader.read()  # until the node behind has cut us off: no TLS is spoken here
        writer.close()
    for node in (*HUBS, *PARTIES):
        (world.lab.directory / node / "planted").write_bytes(planted)
    async with world.lab.client(RESEARCH) as client:
        try:
            await client.ping(f"{CONTROL}.guangdong.cn", 1)
        except TdnError as error:
            world.haystacks["answers"] = {"ping": error.message.encode()}


def column(data: bytes, name: str) -> list[str]:
    """A column of a result."""
    return [row[name] for row in csv.DictReader(io.StringIO(data.decode()))]
