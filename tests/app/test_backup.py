"""Backup and restore of real nodes, and the copy that must not run because others know more of its log."""

import asyncio
import contextlib
import hashlib
import json
import shutil

import pytest

from tdn_interop.app.backup import backup, continuity
from tdn_interop.app.backup.backup import back_up_stopped, restore
from tdn_interop.app.backup.continuity import MARKER
from tdn_interop.app.control.control_client import connected
from tdn_interop.app.node import run_node
from tdn_interop.app.store.post import out_peers
from tdn_interop.config import control_socket
from tdn_interop.errors import Reason, TdnError
from tests.interop.forge import until
from tests.mesh import AIRLINE, HUB_1, RESEARCH, TOP, mini_mesh

FEW = ((TOP, "top", True), (HUB_1, "hub", True), (AIRLINE, "child", True), (RESEARCH, "child", True))


@pytest.fixture
async def mesh(tmp_path):
    async with mini_mesh(tmp_path / "nodes", FEW) as running_mesh:
        yield running_mesh


async def back_up(mesh, node, path, passphrase=""):
    async with connected(control_socket(mesh.config(node)), node) as client:
        return await client.registry.back_up(str(path), passphrase)


async def anchored(mesh, node):
    """An event of a node that the parent has seen."""
    index = await mesh.nodes[node].mesh.note("test.event", node, {})
    await mesh.nodes[node].mesh.anchoring.attest(index)


def reason_of(call, *args):
    with pytest.raises(TdnError) as caught:
        call(*args)
    return caught.value.reason


async def replaced(mesh, node, path, passphrase=""):
    """The node stops, and what is restored takes its folder."""
    if node in mesh.nodes:
        await mesh.stop(node)
    shutil.rmtree(mesh.folder / node)
    return restore(path, mesh.folder / node, passphrase)


async def test_a_running_node_is_backed_up_and_goes_on_after_a_restore(mesh, tmp_path):
    await anchored(mesh, AIRLINE)
    size = await mesh.nodes[AIRLINE].mesh.log_size()
    (mesh.folder / AIRLINE / "results").mkdir(exist_ok=True)
    (mesh.folder / AIRLINE / "results" / "secret.csv").write_text("x")
    (mesh.folder / AIRLINE / "node.log").write_text("x")
    path = tmp_path / "backup"
    done = await back_up(mesh, AIRLINE, path, "pass")
    assert done["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert done["bytes"] == path.stat().st_size
    wanted = {"identity.key", "membership.json", "node.db", "node.toml", "root.pem", "tls.key", "tls.pem"}
    assert wanted <= set(done["files"])
    assert not [name for name in done["files"] if "secret" in name or "log" in name or "lock" in name]

    about = await replaced(mesh, AIRLINE, path, "pass")
    assert (about.node, about.role, about.log_size) == (AIRLINE, "child", size)
    assert (mesh.folder / AIRLINE).stat().st_mode & 0o777 == 0o700
    assert (mesh.folder / AIRLINE / MARKER).exists()
    await mesh.start(AIRLINE)
    assert not (mesh.folder / AIRLINE / MARKER).exists()
    assert (await mesh.nodes[AIRLINE].mesh.pings.ping(RESEARCH, 10)).hops == (HUB_1,)
    await anchored(mesh, AIRLINE)
    assert await mesh.nodes[AIRLINE].mesh._evidence.audit() == size + 1


async def test_a_stopped_hub_is_backed_up_with_its_ca_and_its_members(mesh, tmp_path):
    config = mesh.config(HUB_1)
    assert reason_of(back_up_stopped, config, tmp_path / "backup", "") is Reason.CONFIG_INVALID
    await mesh.stop(HUB_1)
    done = back_up_stopped(config, tmp_path / "backup", "")
    assert {"ca.key", "ca.pem", "notices/status_list-cn.bin"} <= set(done["files"])
    await replaced(mesh, HUB_1, tmp_path / "backup")
    await mesh.start(HUB_1)
    assert mesh.nodes[HUB_1].mesh.register.nodes == [AIRLINE, RESEARCH]
    await until(lambda: mesh.nodes[HUB_1].mesh.tunnels.attached == [AIRLINE, RESEARCH])
    await mesh.nodes[AIRLINE].mesh.pings.ping(RESEARCH, 10)


async def test_an_older_copy_does_not_start(mesh, tmp_path):
    await anchored(mesh, AIRLINE)
    await back_up(mesh, AIRLINE, tmp_path / "backup")
    await anchored(mesh, AIRLINE)
    before = (await replaced(mesh, AIRLINE, tmp_path / "backup")).log_size
    with pytest.raises(TdnError) as caught:
        await mesh.start(AIRLINE)
    assert caught.value.reason is Reason.EVIDENCE_BROKEN
    assert "revoke this id" in caught.value.message
    assert before == 1
    assert (mesh.folder / AIRLINE / MARKER).exists()  # nor does it the next time
    with pytest.raises(TdnError):
        await mesh.start(AIRLINE)


async def test_a_restored_node_waits_for_its_parent(mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(continuity, "RETRY_S", 0.01)
    await back_up(mesh, AIRLINE, tmp_path / "backup")
    await replaced(mesh, AIRLINE, tmp_path / "backup")
    await mesh.stop(HUB_1)
    starting = asyncio.create_task(mesh.start(AIRLINE))
    await asyncio.wait([starting], timeout=1)
    assert not starting.done()
    await mesh.start(HUB_1)
    await asyncio.wait_for(starting, 20)
    await until(lambda: mesh.nodes[HUB_1].mesh.tunnels.attached == [AIRLINE, RESEARCH])
    await mesh.nodes[AIRLINE].mesh.pings.ping(RESEARCH, 10)


async def test_a_letter_after_the_restore_is_not_taken_for_one_from_before(mesh, tmp_path):
    got = []

    async def consume(parcel):
        got.append(parcel.body)
        post, store = mesh.nodes[RESEARCH].mesh.post, mesh.nodes[RESEARCH].mesh._store
        await store.run(lambda c: post.done_in(c, parcel))

    mesh.nodes[RESEARCH].mesh.post.consumer = consume

    async def letter(body):
        node = mesh.nodes[AIRLINE].mesh
        await node._store.run(lambda c: node.post.send_in(c, RESEARCH, body, 60))
        node.post.wake(RESEARCH)
        await until(lambda: body in got)

    await letter(b"first")
    while await mesh.nodes[AIRLINE].mesh._store.run(out_peers):  # until its receipt is here
        await asyncio.sleep(0.01)
    await back_up(mesh, AIRLINE, tmp_path / "backup")
    await letter(b"second")
    await replaced(mesh, AIRLINE, tmp_path / "backup")
    await mesh.start(AIRLINE)
    await letter(b"third")
    assert got == [b"first", b"second", b"third"]


async def test_a_database_from_an_earlier_day_stops_the_process(mesh, tmp_path, monkeypatch):
    """Without the command: somebody put an old file back. It starts, compares, and ends with the reason."""
    monkeypatch.setattr(continuity, "COMPARE_S", 0.05)
    await anchored(mesh, AIRLINE)
    await mesh.stop(AIRLINE)
    folder = mesh.folder / AIRLINE
    shutil.copy(folder / "node.db", tmp_path / "old.db")
    await mesh.start(AIRLINE)
    await anchored(mesh, AIRLINE)
    await mesh.stop(AIRLINE)
    for extra in folder.glob("node.db*"):
        extra.unlink()
    shutil.copy(tmp_path / "old.db", folder / "node.db")
    with pytest.raises(TdnError) as caught:
        await asyncio.wait_for(run_node(mesh.config(AIRLINE)), 20)
    assert caught.value.reason is Reason.EVIDENCE_BROKEN


async def test_a_second_copy_is_found_when_it_has_said_something_else(mesh, tmp_path):
    await anchored(mesh, AIRLINE)
    await back_up(mesh, AIRLINE, tmp_path / "backup")
    await anchored(mesh, AIRLINE)
    await replaced(mesh, AIRLINE, tmp_path / "backup")
    (mesh.folder / AIRLINE / MARKER).unlink()  # whoever copies by hand has none
    node = await mesh.start(AIRLINE)
    for _ in range(3):
        await node.mesh.note("test.event", AIRLINE, {"another": "history"})
    await until(node.continuity.broken.is_set)
    assert node.continuity.error.reason is Reason.EVIDENCE_BROKEN


async def test_restore_refuses_a_node_and_writes_all_or_nothing(mesh, tmp_path):
    path = tmp_path / "backup"
    await back_up(mesh, AIRLINE, path)
    assert reason_of(restore, path, mesh.folder / RESEARCH, "") is Reason.ALREADY_EXISTS
    data = bytearray(path.read_bytes())
    data[-30_000] ^= 1
    path.write_bytes(data)
    out = tmp_path / "deep" / "out"
    assert reason_of(restore, path, out, "") in (Reason.DIGEST_MISMATCH, Reason.INPUT_INVALID)
    assert not out.parent.exists() or not list(out.parent.iterdir())


async def test_files_of_two_nodes_are_no_node(mesh, tmp_path, monkeypatch):
    other = (mesh.folder / RESEARCH / "identity.key").read_bytes()
    honest = backup._small_files
    monkeypatch.setattr(backup, "_small_files", lambda folder: honest(folder) | {"identity.key": other})
    await back_up(mesh, AIRLINE, tmp_path / "backup")
    out = tmp_path / "out"
    assert reason_of(restore, tmp_path / "backup", out, "") is Reason.INPUT_INVALID
    assert not out.exists()


async def test_a_database_of_its_own_is_not_ours_to_back_up(mesh, tmp_path):
    config = mesh.config(AIRLINE).model_copy(update={"database": "postgresql+psycopg://x"})
    await mesh.stop(AIRLINE)
    assert reason_of(back_up_stopped, config, tmp_path / "backup", "") is Reason.UNSUPPORTED
    assert not (tmp_path / "backup").exists()


async def test_a_backup_is_of_one_moment_while_the_node_writes(mesh, tmp_path):
    airline = mesh.nodes[AIRLINE].mesh
    stop = asyncio.Event()

    async def write():
        while not stop.is_set():
            await airline.note("test.event", AIRLINE, {"what": "x" * 100})

    writing = asyncio.create_task(write())
    for number in range(3):
        await back_up(mesh, AIRLINE, tmp_path / str(number))
    stop.set()
    await writing
    sizes = []
    for number in range(3):
        sizes.append(restore(tmp_path / str(number), tmp_path / f"out{number}", "").log_size)
        marker = json.loads((tmp_path / f"out{number}" / MARKER).read_text())
        assert marker["made_at_ms"] <= marker["restored_at_ms"]
    assert sizes == sorted(sizes)
    with contextlib.suppress(TdnError):
        await mesh.stop(AIRLINE)
