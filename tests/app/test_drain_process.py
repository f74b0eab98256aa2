"""A rolling upgrade as its operator does it: drain a hub, start it again, while a file passes through it."""

import json
import os

import pytest

from tests.app.lab_world import User, processes, until

HUB, AIRLINE, REGISTRY = "shandong.cn", "airline.shandong.cn", "registry.guangdong.cn"
SIZE = 300 << 20


@pytest.fixture
def user(tmp_path_factory):
    user = User(tmp_path_factory.mktemp("u"))  # short: the names of sockets are
    user.json("lab", "up", "mini", "--dir", "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(user.temporary))
        yield user
    user.tdn("lab", "down", "--dir", "lab")
    assert processes(user.folder) == {}


def at(node):
    return ("--config", f"lab/{node}/node.toml")


def top(user, node):
    (one,) = user.json("top", *at(node))["nodes"]
    return one


def end_of(command):
    out, err = command.communicate(timeout=90)
    assert command.returncode == 0, err
    return json.loads(out.splitlines()[-1])


def test_a_hub_is_upgraded_while_a_file_passes(user):
    with (user.folder / "file").open("wb") as file:
        for place in range(0, SIZE, 1 << 20):  # every MiB is another one
            file.seek(place)
            file.write(os.urandom(64))
        file.truncate(SIZE)
    receiving = user.start("channel", "recv", "files", "--out", "got", *at(REGISTRY), "--json")
    sending = user.start("channel", "send", REGISTRY, "files", "file", *at(AIRLINE), "--json")
    until(lambda: any(one["forward_bytes"] > 5 << 20 for one in top(user, HUB)["tunnels"]))

    last = user.json("node", "drain", "--timeout", "1s", *at(HUB))
    assert (last["stops"], last["moving"]) == (True, 1)
    until(
        lambda: (
            not [
                row
                for row in user.json("lab", "status", "--dir", "lab")["nodes"]
                if row["id"] == HUB and row["runs"]
            ]
        )
    )
    assert (sending.poll(), receiving.poll()) == (None, None)
    user.json("lab", "start", HUB, "--dir", "lab")

    sent, got = end_of(sending), end_of(receiving)
    assert sent["sha256"] == got["sha256"]
    assert (user.folder / "got").read_bytes() == (user.folder / "file").read_bytes()
    for node in (AIRLINE, REGISTRY):
        log = (user.folder / "lab" / node / "node.log").read_text()
        assert not [line for line in log.splitlines() if '"event_kind": "failed"' in line], log
