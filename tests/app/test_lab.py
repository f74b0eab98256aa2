"""`tdn lab`: real processes that are started, killed and found again."""

import asyncio
import json
import os
import pathlib
import signal
import socket
import subprocess

import pytest

from tdn_interop.app.lab.lab import Lab
from tests.app.lab_world import User, processes, until

ROLES = {
    "cn": "top",
    "shandong.cn": "hub",
    "guangdong.cn": "hub",
    "airline.shandong.cn": "child",
    "research.shandong.cn": "child",
    "registry.guangdong.cn": "child",
}
HUB, AIRLINE, REGISTRY = "shandong.cn", "airline.shandong.cn", "registry.guangdong.cn"


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user whose lab runs in `lab`."""
    user = User(tmp_path_factory.mktemp("user"))
    made = user.json("lab", "up", "mini", "--dir", "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(user.temporary))  # where the nodes have their sockets
        yield user
    user.tdn("lab", "down", "--dir", "lab")
    assert {node["id"] for node in made["nodes"]} == set(ROLES)
    assert processes(user.folder) == {}


def rows(user):
    return {row["id"]: row for row in json.loads((user.folder / "lab" / "lab.json").read_text())["nodes"]}


# What only looks is asked in this process; the commands under test run in processes of their own.


def config(user, node):
    return Lab(user.folder / "lab").config(node)


def status(user):
    return {row["id"]: row for row in asyncio.run(Lab(user.folder / "lab").status())}


def path(user):
    """The relays from the registry to the airline."""

    async def ping():
        async with Lab(user.folder / "lab").client(REGISTRY) as client:
            return (await client.ping(AIRLINE, 10))["hops"]

    return asyncio.run(ping())


def tcp_listeners(pid):
    """Sockets of a process that listen for TCP."""
    listening = {
        line.split()[9]
        for table in ("tcp", "tcp6")
        for line in pathlib.Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    targets = [os.readlink(entry) for entry in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    return [target for target in targets if target[8:-1] in listening]


def test_every_node_is_a_process_of_its_own(user):
    found = rows(user)
    assert {node: row["role"] for node, row in found.items()} == ROLES
    assert [set(row) for row in found.values()] == [{"id", "role", "pid", "config", "log"}] * 6
    assert {row["pid"] for row in found.values()} == set(processes(user.folder))
    for node, row in found.items():
        assert os.getsid(row["pid"]) == row["pid"]  # a terminal that closes does not stop it
        folder = pathlib.Path(row["config"]).parent
        assert {"identity.key", "membership.json", "node.db", "tls.pem"} <= {p.name for p in folder.iterdir()}
        assert pathlib.Path(row["log"]).stat().st_mode & 0o077 == 0
        assert len(tcp_listeners(row["pid"])) == {"top": 2, "hub": 2, "child": node != REGISTRY}[ROLES[node]]
    keys = {(user.folder / "lab" / node / "identity.key").read_bytes() for node in ROLES}
    assert len(keys) == 6


def test_nodes_meet_over_three_relays(user):
    assert path(user) == ["guangdong.cn", "cn", "shandong.cn"]
    shown = user.json("lab", "status", "--dir", "lab")["nodes"]
    assert shown == list(status(user).values())
    assert all(row["runs"] and row["linked"] for row in shown)


def test_children_approve_by_rule_and_others_ask_a_human(user):
    modes = {node: config(user, node).approval for node in ROLES}
    assert {node: mode.mode for node, mode in modes.items()} == {
        node: "rules" if role == "child" else "manual" for node, role in ROLES.items()
    }
    assert modes[AIRLINE].rules[0].algorithms == ["psi"]


def test_a_killed_node_comes_back_from_its_folder(user):
    before, address = rows(user), config(user, HUB).listen
    user.json("lab", "kill", HUB, "--dir", "lab")
    assert before[HUB]["pid"] not in processes(user.folder)
    now = status(user)
    assert (now[HUB]["runs"], now[HUB]["linked"], now[AIRLINE]["runs"]) == (False, False, True)
    assert user.tdn("lab", "kill", HUB, "--dir", "lab")[0] == 0
    user.json("lab", "start", HUB, "--dir", "lab")
    after = rows(user)
    assert after[HUB]["pid"] != before[HUB]["pid"]
    assert {**after, HUB: None} == {**before, HUB: None}
    assert config(user, HUB).listen == address
    until(lambda: status(user)[AIRLINE]["linked"])
    assert path(user) == ["guangdong.cn", "cn", "shandong.cn"]


def test_a_running_node_is_not_started_twice(user):
    before = rows(user)
    user.json("lab", "start", HUB, "--dir", "lab")
    assert rows(user) == before


def test_a_taken_port_is_one_clear_error(user):
    user.json("lab", "kill", REGISTRY, "--dir", "lab")
    user.json("lab", "kill", AIRLINE, "--dir", "lab")
    host, port = config(user, AIRLINE).listen.split(":")
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, int(port)))
        taken.listen()
        code, error = user.error("lab", "start", AIRLINE, "--dir", "lab")
    assert (code, error["reason"]) == (3, "CONFIG_INVALID")
    assert (
        error["message"] == f"{AIRLINE} did not start: cannot listen on {host}:{port}: Address already in use"
    )
    assert error["metadata"] == {"log": rows(user)[AIRLINE]["log"]}
    assert not status(user)[AIRLINE]["runs"]
    user.json("lab", "start", "--dir", "lab")  # without a name: all that is down
    assert all(row["linked"] for row in status(user).values())


def test_a_hub_starts_while_its_top_is_down(user):
    for node in ("cn", HUB):
        user.json("lab", "kill", node, "--dir", "lab")
    user.json("lab", "start", HUB, "--dir", "lab")
    now = status(user)
    assert (now[HUB]["answers"], now[HUB]["linked"], now["cn"]["runs"]) == (True, False, False)
    user.json("lab", "start", "cn", "--dir", "lab")
    until(lambda: all(row["linked"] for row in status(user).values()))


def test_two_commands_at_the_same_time_forget_no_process(user):
    both = (AIRLINE, REGISTRY)
    for node in both:
        user.json("lab", "kill", node, "--dir", "lab")
    commands = [user.start("lab", "start", node, "--dir", "lab") for node in both]
    for command in commands:
        command.communicate(timeout=60)
    assert {row["pid"] for row in rows(user).values()} == set(processes(user.folder))


def test_a_stranger_with_the_pid_of_a_node_is_left_alone(user):
    file = user.folder / "lab" / "lab.json"
    original = file.read_text()
    with subprocess.Popen(["sleep", "60"]) as stranger:
        document = json.loads(original)
        document["nodes"] = [row | {"pid": stranger.pid} for row in document["nodes"]]
        file.write_text(json.dumps(document))
        assert not any(row["runs"] for row in status(user).values())
        user.json("lab", "kill", HUB, "--dir", "lab")
        user.json("lab", "down", "--dir", "lab")
        assert stranger.poll() is None
        stranger.kill()
    file.write_text(original)
    assert all(row["runs"] for row in status(user).values())


@pytest.mark.parametrize(
    ("words", "code", "reason", "told"),
    [
        (("up", "mini", "--dir", "lab"), 5, "ALREADY_EXISTS", "lab is not empty"),
        (
            ("kill", "hebei.cn", "--dir", "lab"),
            3,
            "LAB_UNKNOWN",
            "has no node hebei.cn; it has cn, shandong.cn",
        ),
        (("start", "hebei.cn", "--dir", "lab"), 3, "LAB_UNKNOWN", "has no node hebei.cn"),
        (("status", "--dir", "nothing"), 3, "LAB_UNKNOWN", "there is no lab in"),
        (("down", "--dir", "."), 3, "LAB_UNKNOWN", "there is no lab in"),
    ],
)
def test_mistakes(user, words, code, reason, told):
    found, error = user.error("lab", *words)
    assert (found, error["reason"]) == (code, reason)
    assert told in error["message"]
    assert len(processes(user.folder)) == 6


def test_a_lab_file_that_is_none(tmp_path):
    (tmp_path / "lab.json").write_text('{"nodes": [{"id": "cn"}]}')
    code, error = User(tmp_path).error("lab", "status", "--dir", ".")
    assert (code, error["reason"]) == (3, "LAB_UNKNOWN")


def test_down_stops_everything_and_may_be_repeated(user):
    for _ in range(2):
        stopped = user.json("lab", "down", "--dir", "lab")
        assert not any(row["runs"] for row in stopped["nodes"])
        assert processes(user.folder) == {}
    for node in ROLES:
        last = pathlib.Path(rows(user)[node]["log"]).read_text().splitlines()[-1]
        assert json.loads(last)["event"] == "stopped"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_up_leaves_nothing(tmp_path, number):
    user = User(tmp_path)
    process = user.start("lab", "up", "mini", "--dir", "lab")
    until(lambda: processes(tmp_path))
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.strip()) == (130, "interrupted")
    assert processes(tmp_path) == {}
    assert not (tmp_path / "lab").exists()
    assert list(user.temporary.iterdir()) == []


def test_up_needs_a_known_topology(tmp_path):
    code, _, err = User(tmp_path).tdn("lab", "up", "enormous", "--dir", "lab")
    assert code == 2
    assert "mini" in err
