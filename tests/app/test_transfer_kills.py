"""Nodes that are killed in the middle of a file: real processes, the commands of a user, one file."""

import asyncio
import contextlib
import json
import os
import signal

import pytest

from tdn_interop.app.lab.lab import Lab
from tests.app.lab_world import User, until

SENDER, RECEIVER, HUB = "research.shandong.cn", "registry.guangdong.cn", "shandong.cn"
SIZE, EVERY = 250_000_000, 20_000_000
WINDOW = 17 << 20


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    user = User(tmp_path_factory.mktemp("user"))
    user.json("lab", "up", "mini", "--dir", "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(user.temporary))  # where the nodes have their sockets
        yield user
    user.tdn("lab", "down", "--dir", "lab")


def config(node):
    return ("--config", f"lab/{node}/node.toml")


@contextlib.contextmanager
def command(user, *words):
    """A command of the user that is killed if the test does not see its end."""
    with user.start("channel", *words, "--json") as process:
        try:
            yield process
        finally:
            process.kill()


def written(folder):
    """Bytes that the receiver has written so far."""
    return sum(path.stat().st_size for path in folder.glob(".tdn-*.part"))


def kill(user, node):
    """As by the kernel: no warning, no clean-up."""
    lab = Lab(user.folder / "lab")
    os.kill(lab.node(node).pid, signal.SIGKILL)
    until(lambda: not lab.node(node).runs)


def transfers(user, node):
    async def ask():
        async with Lab(user.folder / "lab").client(node) as client:
            return (await client.transfers())["transfers"]

    return asyncio.run(ask())


def end(process):
    """The last line of a command, which must succeed."""
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def test_a_file_arrives_once_and_whole_whoever_is_killed(user):
    """T-DLV-02: each victim dies at another point, and comes back; the commands never notice more than a pause."""
    sent, out, victims = user.folder / "sent", user.folder / "got", (SENDER, RECEIVER, HUB)
    sent.write_bytes(os.urandom(SIZE))
    with (
        command(user, "recv", "kills", "--out", out, *config(RECEIVER)) as receiver,
        command(user, "send", RECEIVER, "kills", sent, *config(SENDER)) as sender,
    ):
        for number, victim in enumerate(victims):
            until(lambda: written(user.folder) >= EVERY * (number + 1))
            kill(user, victim)
            user.json("lab", "start", victim, "--dir", "lab")
        gone, got = end(sender), end(receiver)
    assert out.read_bytes() == sent.read_bytes()
    assert (gone["bytes"], gone["sha256"]) == (SIZE, got["sha256"])
    assert 1 <= gone["resumes"] <= len(victims)
    assert gone["resent_bytes"] <= len(victims) * WINDOW
    assert [path.name for path in user.folder.glob(".tdn-*")] == []
    assert [row["state"] for row in transfers(user, RECEIVER)] == ["DELIVERED"]
    assert [row["state"] for row in transfers(user, SENDER)] == ["DONE"]
