"""A lab: a whole network on this machine, each node a process of its own, enrolled the way everybody is.

The lab is its folder. `lab.json` names the nodes; each has a folder of its own with configuration, keys,
database and log. Nothing else is remembered, so every command may come from another process.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tdn_interop import ids
from tdn_interop.app.control.control_client import Document, NodeClient, connected
from tdn_interop.app.lab import lab_process
from tdn_interop.app.lab.topology import TOPOLOGIES, Place
from tdn_interop.app.members import setup
from tdn_interop.app.members.federation import federate
from tdn_interop.config import NodeConfig, control_socket, load_config, runtime_dir
from tdn_interop.errors import ConfigError, Reason, TdnError, Unavailable, guard
from tdn_interop.transport import records_wire

# Below the ports that Linux hands out by itself (32768 and up), so a port stays free while its node is down.
PORTS = range(20_000, 32_000)
Note = Callable[[str, float], None]
START_S, POLL_S, TOKEN_S = 60.0, 0.05, 600

# A node starts after those it needs; nodes of one stage start at the same time.
STAGES = ("top", "hub", "child")

_MANUAL = '\nmode = "manual"\n'
_BY_RULE = '\nmode = "rules"\n[[approval.rules]]\nalgorithms = ["psi"]\n'


@dataclass(frozen=True, slots=True)
class LabNode:
    """A row of `lab.json`. `pid` is that of the last start; whether it still runs is asked of the system."""

    id: str
    role: str
    pid: int | None
    config: str
    log: str

    @property
    def runs(self) -> bool:
        """True while the process lives."""
        return lab_process.runs(self.pid, self.config)


def node_command(node: str, config: Path) -> list[str]:
    """How a node is started: this interpreter, this package; errors are JSON so that the lab can read them."""
    del node
    return [
        sys.executable,
        "-P",
        "-m",
        "tdn_interop.app.cli",
        "node",
        "run",
        "--json",
        "--config",
        str(config),
    ]


class Lab:
    """The lab in `directory`.

    `command` makes the command line of a node; it must hold the configuration as an argument of its own.
    `advertised` tells for each address that a node listens on which one others are told: a test puts a proxy
    between.
    """

    def __init__(
        self,
        directory: Path,
        command: Callable[[str, Path], list[str]] = node_command,
        advertised: Callable[[str], str] = str,
    ) -> None:
        self.directory = directory.resolve()
        self._file = self.directory / "lab.json"
        self._command = command
        self._advertised = advertised

    @property
    def nodes(self) -> list[LabNode]:
        """Every node. Errors: LAB_UNKNOWN."""
        try:
            rows = json.loads(self._file.read_text())["nodes"]
            return [LabNode(**row) for row in rows]
        except FileNotFoundError:
            _refuse(f"there is no lab in {self.directory}")
        except (OSError, ValueError, KeyError, TypeError):
            _refuse(f"{self._file} is not that of a lab")

    def node(self, name: str) -> LabNode:
        """One node. Errors: LAB_UNKNOWN."""
        nodes = {node.id: node for node in self.nodes}
        if name not in nodes:
            _refuse(f"{self.directory} has no node {name}; it has {', '.join(nodes)}")
        return nodes[name]

    def config(self, name: str) -> NodeConfig:
        """The configuration of a node. Errors: LAB_UNKNOWN, CONFIG_INVALID."""
        return load_config(Path(self.node(name).config))

    def client(self, name: str) -> AbstractAsyncContextManager[NodeClient]:
        """A client of a node's control socket. Errors: LAB_UNKNOWN, CONFIG_INVALID."""
        config = self.config(name)
        return connected(control_socket(config), f"{name}, configured in {config.dir}")

    async def up(self, topology: str, note: Note = lambda _node, _part: None) -> None:
        """Make the network and start it: tops, then hubs, then children; `note` hears (node, part that is up).

        Errors: ALREADY_EXISTS, and why a node did not start; then nothing runs and nothing is left.
        """
        places = TOPOLOGIES[topology]
        self._make_folder()
        running = itertools.count(1)
        try:
            self._init(places)
            tops = [self.config(place.id) for place in places if place.role == "top"]
            for one, other in itertools.combinations(tops, 2):
                await federate(one, other)
            for role in STAGES:
                stage = [place.id for place in places if place.role == role]
                await _together(self._enrol(node) for node in stage)
                await _together(
                    self._start(node, lambda name: note(name, next(running) / len(places))) for node in stage
                )
        except BaseException:
            if self._file.exists():  # before it does, nothing runs
                await self.down()
            self.remove()
            raise

    async def start(self, *names: str) -> None:
        """Start nodes that are down; without names every one. Errors: LAB_UNKNOWN, why a node did not start."""
        wanted = [self.node(name) for name in names] or self.nodes
        for role in STAGES:
            await _together(self._start(node.id) for node in wanted if node.role == role)

    async def kill(self, name: str) -> None:
        """SIGKILL: no goodbye, no last write. Errors: LAB_UNKNOWN."""
        node = self.node(name)
        await lab_process.end(node.pid, node.config, signal.SIGKILL)

    async def down(self) -> None:
        """Stop every node, children first, and by force what does not stop. Errors: LAB_UNKNOWN."""
        nodes = self.nodes
        for role in reversed(STAGES):
            await _together(
                lab_process.end(node.pid, node.config, signal.SIGTERM, signal.SIGKILL)
                for node in nodes
                if node.role == role
            )

    async def status(self) -> list[Document]:
        """Every node, whether it runs, and whether its parent is linked. Errors: LAB_UNKNOWN."""
        return list(await asyncio.gather(*(self._status(node) for node in self.nodes)))

    def remove(self) -> None:
        """Delete the folder and the nodes' sockets. Only what does not run may be removed."""
        if self.directory.exists():
            for file in self.directory.glob("*/node.toml"):
                shutil.rmtree(runtime_dir(file.parent))
            shutil.rmtree(self.directory)

    # -- starting ------------------------------------------------------------------------------

    def _init(self, places: Sequence[Place]) -> None:
        free = _free_addresses(str(self.directory))
        addresses = {place.id: next(free) for place in places if place.listens}
        files = []
        for place in places:
            file = _init_node(self.directory / place.id, place, addresses.get(place.id), free)
            links = {node: self._advertised(addresses[node]) for node in place.links}
            _write_links(file, links, [guest.id for guest in places if place.id in guest.links])
            files.append((place, file))
        self._write([
            LabNode(place.id, place.role, None, str(file), str(file.with_name("node.log"))) for place, file in files
        ])  # fmt: skip

    def _make_folder(self) -> None:
        gate, folder = guard("TDN-X-LAB-08"), self.directory
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            taken = any(folder.iterdir())
        except OSError as error:
            words = f"{folder} cannot be made: {error.strerror}"
            gate.refuse(Reason.INPUT_INVALID, words, ConfigError)
        words = f"{folder} is not empty; a lab is made in a folder of its own"
        gate.check(not taken, Reason.ALREADY_EXISTS, words, ConfigError)

    async def _enrol(self, name: str) -> None:
        """Join a node to its running parent with a single-use token; a top is a member already."""
        config = self.config(name)
        if config.role == "top":
            return
        async with self.client(ids.parent(name)) as parent:
            answer = await parent.invite(name, config.role, TOKEN_S)
        token = records_wire.decode_token(answer["token"])
        told = dataclasses.replace(
            token,
            endpoint=self._advertised(token.endpoint),
            link_endpoint=self._advertised(token.link_endpoint),
        )
        await setup.join(config, records_wire.encode_token(told))

    async def _start(self, name: str, on_start: Callable[[str], None] = lambda _node: None) -> None:
        node = self.node(name)
        if not node.runs:
            begin = _size(Path(node.log))
            pid = lab_process.spawn(self._command(name, Path(node.config)), Path(node.log))
            await self._until_it_serves(self._note(name, pid), begin)
        on_start(name)

    async def _until_it_serves(self, node: LabNode, begin: int) -> None:
        """Wait until the node answers its owner and is linked to its parent, if that runs.

        Errors: what the node said last, from the place `begin` of its log, when it ends or takes longer than START_S.
        """
        above = ids.parent(node.id)
        try:
            async with asyncio.timeout(START_S):
                while node.runs:
                    now = await self._status(node)
                    if now["linked"] or (now["answers"] and not self.node(above).runs):
                        return
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            await lab_process.end(node.pid, node.config, signal.SIGTERM, signal.SIGKILL)
        reason, words = _last_words(Path(node.log), begin)
        guard("TDN-X-LAB-09").refuse(reason, f"{node.id} did not start: {words}", Unavailable, log=node.log)

    async def _status(self, node: LabNode) -> Document:
        row: Document = dataclasses.asdict(node) | {"runs": node.runs, "answers": False, "linked": False}
        if row["runs"]:
            with contextlib.suppress(TdnError):  # it has just started, or is busy
                async with self.client(node.id) as client:
                    row |= {"answers": True, "linked": (await client.status())["linked"]}
        return row

    # -- lab.json ------------------------------------------------------------------------------

    def _note(self, name: str, pid: int) -> LabNode:
        """Write down the pid of a node; commands that start others at the same time wait their turn."""
        with self._alone():
            nodes = [dataclasses.replace(n, pid=pid) if n.id == name else n for n in self.nodes]
            self._write(nodes)
        return self.node(name)

    def _write(self, nodes: list[LabNode]) -> None:
        rows: dict[str, Any] = {"nodes": [dataclasses.asdict(node) for node in nodes]}
        fresh = self.directory / "lab.new"
        fresh.write_text(json.dumps(rows, indent=1) + "\n")
        fresh.replace(self._file)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        folder = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)


def _init_node(directory: Path, place: Place, listen: str | None, addresses: Iterator[str]) -> Path:
    """Make a node; children approve every private set intersection by rule, so that no human need sit there."""
    enrolment = next(addresses) if place.role != "child" else None
    file = setup.init_node(directory, place.id, place.role, listen=listen, enrolment=enrolment)
    if place.role == "child":
        file.write_text(file.read_text().replace(_MANUAL, _BY_RULE))
    return file


def _write_links(file: Path, links: dict[str, str], neighbours: list[str]) -> None:
    """Who this node keeps a link to besides its parent, and who may keep one to it: TOML, keys before tables."""
    if neighbours:
        file.write_text(f"neighbours = {json.dumps(neighbours)}\n\n{file.read_text()}")
    with file.open("a") as text:
        for node, address in links.items():
            text.write(f"\n[[links]]\nnode = {json.dumps(node)}\naddress = {json.dumps(address)}\n")


def _free_addresses(seed: str) -> Iterator[str]:
    """Loopback addresses that nobody listens on. `seed` says where to begin, so that two labs do not race for one."""
    first = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4])
    for step in range(len(PORTS)):
        port = PORTS[(first + step) % len(PORTS)]
        if _is_free(port):
            yield f"127.0.0.1:{port}"
    guard("TDN-X-LAB-09").refuse(
        Reason.CONFIG_INVALID, f"no free port from {PORTS.start} to {PORTS.stop}", ConfigError
    )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _size(log: Path) -> int:
    return log.stat().st_size if log.exists() else 0


def _last_words(log: Path, begin: int) -> tuple[Reason, str]:
    """Why a node ended: the error of `tdn node run --json`, or else its last line."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = [line for line in file.read().decode("utf-8", "replace").split("\n") if line.strip()]
    errors = [json.loads(line)["error"] for line in lines if line.startswith('{"error": ')]
    if errors:
        return Reason[errors[-1]["reason"]], errors[-1]["message"]
    return Reason.NODE_DOWN, lines[-1][:400] if lines else "it said nothing"


def _refuse(words: str) -> NoReturn:
    guard("TDN-X-LAB-08").refuse(Reason.LAB_UNKNOWN, words, ConfigError)


async def _together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do everything at the same time. Errors: the first one; the rest is then cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except ExceptionGroup as several:
        raise several.exceptions[0] from None
