"""A region of real processes: a top and a hub are killed under way, and everything goes on. `-s` shows the gaps."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import os
import signal
import time

import pytest

from tdn_interop import ids
from tdn_interop.app.lab.lab import Lab
from tests.app.cli.fake import COMMAND
from tests.app.lab_world import PATIENCE_S, User, processes

GAP_S = 5.0
# A machine that runs many tests at once may be late to notice that nothing comes.
BUSY_S = 2.0
PORT, EXCHANGE, RESEARCH, CLINIC = (
    "port.kowloon.hk",
    "exchange.central.hk",
    "research.shandong.cn",
    "clinic.kowloon.hk",
)
PAIRS = (
    (PORT, EXCHANGE),
    (RESEARCH, PORT),
    (CLINIC, "airline.shandong.cn"),
    ("customs.guangdong.cn", "archive.central.hk"),
)
SIZE = 100_000_000


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user whose region runs in `lab`."""
    user = User(tmp_path_factory.mktemp("user"))
    user.json("lab", "up", "region", "--dir", "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(user.temporary))  # where the nodes have their sockets
        yield user
    user.tdn("lab", "down", "--dir", "lab")
    assert processes(user.folder) == {}


class Pinging:
    """Pings of one pair, one after another, and when each came back."""

    def __init__(self, lab, source, destination):
        self.lab, self.source, self.destination = lab, source, destination
        self.answers = []

    async def run(self):
        async with self.lab.client(self.source) as client:
            while True:
                answer = await client.ping(self.destination, 30)
                self.answers.append((time.monotonic(), tuple(answer["hops"])))
                await asyncio.sleep(0.02)  # a pause for the machine; nothing waits for it

    @property
    def path(self):
        return self.answers[-1][1]

    async def answered_after(self, moment):
        async with asyncio.timeout(PATIENCE_S):
            while not self.answers or self.answers[-1][0] < moment:
                await asyncio.sleep(0.02)

    def longest_gap(self, begin, end):
        times = [at for at, _ in self.answers if begin - 1 <= at <= end]
        return max(later - earlier for earlier, later in itertools.pairwise(times))


@contextlib.asynccontextmanager
async def pinging(lab):
    loops = {(source, destination): Pinging(lab, source, destination) for source, destination in PAIRS}
    tasks = [asyncio.create_task(loop.run()) for loop in loops.values()]
    try:
        for loop in loops.values():
            await loop.answered_after(0)
        yield loops
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [r for r in results if not isinstance(r, asyncio.CancelledError)] == []


async def whole(lab):
    """Wait until every link of every node stands, and every hub and top knows the way to every other one."""
    async with asyncio.timeout(PATIENCE_S):
        while not all([await knows_everybody(lab, node) for node in lab.nodes]):
            await asyncio.sleep(0.1)


async def knows_everybody(lab, node):
    async with lab.client(node.id) as client:
        found = await client.routes()
    relays = {other.id for other in lab.nodes if other.role != "child"} - {node.id}
    stands = all(link["linked"] for link in found["links"])
    return stands and (node.role == "child" or relays <= {route["prefix"] for route in found["routes"]})


@contextlib.asynccontextmanager
async def transfer(user, lab, source, destination, name):
    """A file on its way; in the end it must have arrived as it was."""
    file, out = user.folder / f"{name}.in", user.folder / f"{name}.out"
    file.write_bytes(os.urandom(1_000_000) * (SIZE // 1_000_000))

    async def command(node, *words):
        config = str(lab.node(node).config)
        return await asyncio.create_subprocess_exec(
            *COMMAND, *map(str, words), "--config", config, "--json", cwd=user.folder,
            env=user.environment, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    receiver = await command(destination, "channel", "recv", name, "--out", out)
    sender = await command(source, "channel", "send", destination, name, file)
    try:
        first = await asyncio.wait_for(sender.stdout.readline(), PATIENCE_S)
        assert json.loads(first)
        yield sender
        told, _ = await asyncio.wait_for(sender.communicate(), PATIENCE_S)
        await asyncio.wait_for(receiver.communicate(), PATIENCE_S)
    finally:
        for process in (sender, receiver):
            if process.returncode is None:
                process.kill()
    assert (sender.returncode, receiver.returncode) == (0, 0)
    digests = [hashlib.sha256(each.read_bytes()).hexdigest() for each in (file, out)]
    assert digests[0] == digests[1] == json.loads(told.splitlines()[-1])["sha256"]
    file.unlink()
    out.unlink()


def sessions(lab, kind):
    """Events of one kind in the logs of all children: (node, peer)."""
    found = []
    for node in lab.nodes:
        with open(node.log) as log:
            lines = [json.loads(line) for line in log if '"event_kind"' in line]
        found += [
            (node.id, line["peer"]) for line in lines if line["event_kind"] == kind and node.role == "child"
        ]
    return found


CASES = {
    "a top is killed": ("hk", PORT, EXCHANGE),
    "a hub is killed": ("guangdong.cn", RESEARCH, PORT),
    "a top vanishes without a word": ("hk", RESEARCH, PORT),  # where the hub's traffic has gone
}


@pytest.mark.parametrize("case", CASES)
async def test_a_relay_fails_and_everything_goes_on(user, case):
    relay, source, destination = CASES[case]
    killed, limit_s = "killed" in case, GAP_S if "killed" in case else GAP_S + BUSY_S
    lab = Lab(user.folder / "lab")
    await whole(lab)
    async with pinging(lab) as loops:
        assert relay in loops[source, destination].path
        lasting = [loop for pair, loop in loops.items() if relay not in {ids.parent(node) for node in pair}]
        under_way = [loop for loop in lasting if relay in loop.path]
        async with transfer(user, lab, source, destination, case.replace(" ", "-")) as sender:
            os.kill(lab.node(relay).pid, signal.SIGKILL if killed else signal.SIGSTOP)
            begin = time.monotonic()
            assert sender.returncode is None
            for loop in lasting:
                await loop.answered_after(begin + limit_s + 1)
        gaps = {loop.source: loop.longest_gap(begin, begin + limit_s + 1) for loop in lasting}
        print(f"\n{case}:", {node: f"{gap:.2f} s" for node, gap in gaps.items()})
        assert max(gaps.values()) <= limit_s
        assert all(relay not in loop.path for loop in under_way)
        await revive(user, lab, relay, killed=killed)
        for loop in loops.values():
            await loop.answered_after(time.monotonic())
    assert sessions(lab, "failed") == []
    resumed = sessions(lab, "resumed")
    assert (source, destination) in {*resumed, *(pair[::-1] for pair in resumed)}


async def revive(user, lab, relay, *, killed):
    if killed:
        await asyncio.to_thread(user.json, "lab", "start", relay, "--dir", "lab")
    else:
        os.kill(lab.node(relay).pid, signal.SIGCONT)
