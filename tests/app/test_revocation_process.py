"""Revocation as its operator does it, against processes: one node pings another all the time, then it is over."""

import asyncio
import json
import time

import pytest

from tdn_interop.app.lab.lab import Lab
from tdn_interop.errors import Reason, TdnError
from tests.app.lab_world import User, processes

TOP, HUB, AIRLINE, RESEARCH = "cn", "shandong.cn", "airline.shandong.cn", "research.shandong.cn"
REGISTRY = "registry.guangdong.cn"
BOUND_S = 60


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    user = User(tmp_path_factory.mktemp("user"))
    user.json("lab", "up", "mini", "--dir", "lab")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(user.temporary))
        yield user
    user.tdn("lab", "down", "--dir", "lab")
    assert processes(user.folder) == {}


def at(node):
    return ("--config", f"lab/{node}/node.toml")


async def ping_until_refused(user, asker, node, began):
    """(pings that succeeded, seconds until one was refused, the error)."""
    async with Lab(user.folder / "lab").client(asker) as client:
        good = 0
        while time.monotonic() < began + BOUND_S:
            try:
                await client.ping(node, 10)
                good += 1
            except TdnError as error:
                if error.reason is Reason.REVOKED:
                    return good, time.monotonic() - began, error
            await asyncio.sleep(0.02)
    raise AssertionError(f"{asker} still talks to {node}")


def test_a_revoked_node_is_refused_everywhere_within_the_bound(user):
    before = user.json("registry", "ls", *at(HUB))["members"]
    assert [(one["node_id"], one["state"]) for one in before] == [(AIRLINE, "ACTIVE"), (RESEARCH, "ACTIVE")]
    assert all(one["certificate_expires_at_ms"] for one in before)

    async def scene():
        talk = asyncio.gather(
            ping_until_refused(user, REGISTRY, AIRLINE, began := time.monotonic()),
            ping_until_refused(user, AIRLINE, RESEARCH, began),
        )
        await asyncio.sleep(0.5)
        done = await asyncio.to_thread(
            user.json, "registry", "revoke", AIRLINE, "--reason", "key lost", "--yes", *at(HUB)
        )
        assert done == {"node_id": AIRLINE, "listed": True}
        return await talk

    for good, seconds, error in asyncio.run(scene()):
        assert good > 0
        assert seconds < BOUND_S
        assert AIRLINE in error.message
    code, error = user.error("ping", AIRLINE, *at(TOP))
    assert (code, error["reason"]) == (Reason.REVOKED.value.exit_code, "REVOKED")
    states = {one["node_id"]: one["state"] for one in user.json("registry", "ls", *at(TOP))["members"]}
    assert states[AIRLINE] == "REVOKED"
    for node in (TOP, HUB, RESEARCH, REGISTRY):
        found = user.json("registry", "status", *at(node))
        [revoked] = found["revoked"]
        assert (revoked["node_id"], revoked["reason"]) == (AIRLINE, "key lost")
        [held] = found["lists"]
        assert held["top"] == TOP
        assert held["age_s"] < BOUND_S
        assert not held["stale"]


def test_nobody_else_is_touched(user):
    assert user.json("ping", RESEARCH, *at(REGISTRY))["hops"] == [HUB, TOP, "guangdong.cn"][::-1]


def test_what_is_not_ours_is_refused_and_without_yes_it_asks(user):
    code, error = user.error("registry", "revoke", REGISTRY, "--yes", *at(HUB))
    assert (code, error["reason"]) == (Reason.POLICY_DENIED.value.exit_code, "POLICY_DENIED")
    code, out, err = user.tdn("registry", "revoke", RESEARCH, *at(HUB))  # nobody answers
    assert code != 0
    assert "for ever" in err
    assert out.strip() == ""
    assert user.json("ping", RESEARCH, *at(REGISTRY))


def test_tables_for_people(user):
    for words in (("ls",), ("status",)):
        code, out, _ = user.tdn("registry", *words, *at(HUB))
        assert code == 0
        assert AIRLINE in out


def test_backup_of_a_running_and_of_a_stopped_node(user):
    (user.folder / "secret").write_text("correct horse\nsecond line\n")
    sealed = user.json("node", "backup", "sealed", "--passphrase-file", "secret", *at(RESEARCH))
    assert "node.db" in sealed["files"]
    code, error = user.error("node", "backup", "sealed", *at(RESEARCH))
    assert error["reason"] == "OUTPUT_EXISTS"
    code, error = user.error("node", "restore", "sealed", "--dir", "again")
    assert (code, error["reason"]) == (3, "INPUT_INVALID")
    found = user.json("node", "restore", "sealed", "--dir", "again", "--passphrase-file", "secret")
    assert (found["node"], found["role"]) == (RESEARCH, "child")
    assert not (user.folder / "again" / "results").exists()
    code, error = user.error("node", "restore", "sealed", "--dir", "again", "--passphrase-file", "secret")
    assert error["reason"] == "ALREADY_EXISTS"

    user.tdn("lab", "kill", RESEARCH, "--dir", "lab")
    plain = user.json("node", "backup", "plain", *at(RESEARCH))
    assert plain["files"] == sealed["files"]
    code, _, err = user.tdn("node", "restore", "plain", "--dir", "third")
    assert code == 0
    assert "never run again" in err
    assert json.loads((user.folder / "third" / "restored.json").read_text())["made_at_ms"]
