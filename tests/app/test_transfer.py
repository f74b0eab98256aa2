"""Files over three relays: whole or not at all, one after the other, and nobody waits for another topic."""

import asyncio
import contextlib
import json
import os

import pytest
import pytest_asyncio

from tdn_interop.app.files import transfer_wire as wire
from tdn_interop.app.files.moving import Sizes
from tdn_interop.app.files.offers import MAX_WAITING
from tdn_interop.errors import Reason, TdnError
from tdn_interop.transport.frame import Failure
from tests.app.job_mesh import restart, tdn
from tests.interop.forge import until
from tests.mesh import AIRLINE, REGISTRY, RESEARCH, mini_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")
PART_BYTES = Sizes().part
SIZES = [0, 1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 20_000_000]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mesh(tmp_path_factory):
    async with mini_mesh(tmp_path_factory.mktemp("mesh")) as running:
        for node in (AIRLINE, REGISTRY, RESEARCH):
            await restart(running, node, ("idle_s = 120", "idle_s = 2"))
        yield running


@pytest.fixture
def file(tmp_path):
    """Make a file of random content."""

    def make(size, name="sent"):
        path = tmp_path / name
        path.write_bytes(os.urandom(size))
        return path

    return make


async def finish(transfer):
    async with asyncio.timeout(30), contextlib.aclosing(transfer):
        async for now in transfer:
            last = now
    return last


def sending(mesh, topic, path, node=RESEARCH, to=REGISTRY):
    return mesh.nodes[node].transfers.send(to, topic, path)


def receiving(mesh, topic, out, timeout_s=20, node=REGISTRY):
    return mesh.nodes[node].transfers.receive(topic, out, timeout_s)


async def refused(transfer, reason):
    with pytest.raises(TdnError) as error:
        await finish(transfer)
    assert error.value.reason is reason
    return error.value


async def refused_as(command, reason):
    with pytest.raises(TdnError) as error:
        await command
    assert error.value.reason is reason


async def moves(mesh, topic, path, out):
    """The topic works: the next file arrives whole."""
    await asyncio.gather(finish(receiving(mesh, topic, out)), finish(sending(mesh, topic, path)))
    assert out.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("size", SIZES)
async def test_whole_file(mesh, tmp_path, file, size):
    sent, out = file(size), tmp_path / "got"
    got, gone = await asyncio.gather(
        finish(receiving(mesh, f"size/{size}", out)), finish(sending(mesh, f"size/{size}", sent))
    )
    assert out.read_bytes() == sent.read_bytes()
    assert (got.moved_bytes, got.total_bytes, got.peer, got.done) == (size, size, RESEARCH, True)
    assert (gone.moved_bytes, gone.sha256, gone.done) == (size, got.sha256, True)
    assert sorted(os.listdir(tmp_path)) == ["got", "sent"]


async def test_offered_before_anybody_receives(mesh, tmp_path, file):
    sent = file(100_000)
    sender = asyncio.ensure_future(finish(sending(mesh, "early", sent)))
    while not mesh.nodes[REGISTRY].transfers._offers._waiting:
        await asyncio.sleep(0.01)
    assert not sender.done()
    await finish(receiving(mesh, "early", tmp_path / "got"))
    assert (await sender).done
    assert (tmp_path / "got").read_bytes() == sent.read_bytes()


async def test_received_before_anybody_sends(mesh, tmp_path, file):
    receiver = asyncio.ensure_future(finish(receiving(mesh, "late", tmp_path / "got")))
    await asyncio.sleep(0)
    sent = file(100_000)
    await finish(sending(mesh, "late", sent))
    assert (await receiver).done
    assert (tmp_path / "got").read_bytes() == sent.read_bytes()


async def test_nothing_is_overwritten(mesh, tmp_path, file):
    out = tmp_path / "got"
    out.write_text("mine")
    error = await refused(receiving(mesh, "taken", out), Reason.OUTPUT_EXISTS)
    assert str(out) in error.message
    out.unlink()
    transfer = receiving(mesh, "taken", out)
    sender = asyncio.ensure_future(finish(sending(mesh, "taken", file(10))))
    await anext(transfer)
    out.write_text("mine")
    error = await refused(transfer, Reason.OUTPUT_EXISTS)
    await sender
    assert out.read_text() == "mine"
    (kept,) = tmp_path.glob(".tdn-*")
    assert str(kept) in error.message
    assert kept.read_bytes() == (tmp_path / "sent").read_bytes()


async def test_files_that_cannot_be(mesh, tmp_path, file):
    await refused(receiving(mesh, "t", tmp_path / "no" / "got"), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", tmp_path / "nothing"), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", tmp_path), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", file(1), to="nobody.guangdong.cn"), Reason.NO_ROUTE)
    assert os.listdir(tmp_path) == ["sent"]


async def test_a_file_to_a_node_that_is_away_waits_for_it(mesh, file, tmp_path):
    source = file(100_000)
    await mesh.stop(REGISTRY)
    sent = asyncio.create_task(finish(sending(mesh, "late", source)))
    logged = mesh.nodes[RESEARCH].mesh.channels
    await until(lambda: not sent.done() and REGISTRY not in logged.peers())
    await asyncio.sleep(0.5)  # the time in which it would have been given up
    assert not sent.done()
    await mesh.start(REGISTRY)
    last = await finish(receiving(mesh, "late", tmp_path / "late"))
    assert (await sent).sha256 == last.sha256
    assert (tmp_path / "late").read_bytes() == source.read_bytes()


async def test_nobody_sends(mesh, tmp_path):
    error = await refused(receiving(mesh, "quiet", tmp_path / "got", 0.05), Reason.DEADLINE)
    assert "quiet" in error.message
    assert os.listdir(tmp_path) == []


async def test_sender_gives_up(mesh, tmp_path, file):
    receiver = asyncio.ensure_future(finish(receiving(mesh, "given-up", tmp_path / "got")))
    transfer = sending(mesh, "given-up", file(5_000_000))
    while not (await anext(transfer)).moved_bytes:
        pass
    await transfer.aclose()
    with pytest.raises(TdnError) as error:
        await receiver
    assert error.value.reason is Reason.ABANDONED
    assert RESEARCH in error.value.message
    assert os.listdir(tmp_path) == ["sent"]
    await moves(mesh, "given-up", file(2_000_000), tmp_path / "got")


async def test_receiver_gives_up(mesh, tmp_path, file):
    """What is still on its way is passed over by the next one."""
    first = asyncio.ensure_future(finish(sending(mesh, "left", file(2_000_000, "first"))))
    transfer = receiving(mesh, "left", tmp_path / "got")
    await anext(transfer)
    await transfer.aclose()
    with pytest.raises(TdnError) as error:
        await first
    assert (error.value.reason, error.value.metadata["noticed_by"]) == (Reason.ABANDONED, REGISTRY)
    assert os.listdir(tmp_path) == ["first"]
    await moves(mesh, "left", file(2_000_000), tmp_path / "got")


async def test_file_that_changes_while_it_is_sent(mesh, tmp_path, file):
    sent = file(3_000_000)
    receiver = asyncio.ensure_future(finish(receiving(mesh, "grows", tmp_path / "got")))
    transfer = sending(mesh, "grows", sent)
    await anext(transfer)
    with sent.open("ab") as more:
        more.write(b"more")
    await refused(transfer, Reason.DIGEST_MISMATCH)
    with pytest.raises(TdnError) as error:
        await receiver
    assert error.value.reason is Reason.ABANDONED
    assert os.listdir(tmp_path) == ["sent"]


async def test_two_senders_and_two_receivers_on_one_topic(mesh, tmp_path, file):
    files = {AIRLINE: file(3_000_000, "a"), RESEARCH: file(3_000_000, "r")}
    senders = [finish(sending(mesh, "shared", path, node)) for node, path in files.items()]
    outs = [tmp_path / "one", tmp_path / "two"]
    one, two, *_ = await asyncio.gather(*(finish(receiving(mesh, "shared", out)) for out in outs), *senders)
    assert {one.peer, two.peer} == set(files)
    for got, out in ((one, outs[0]), (two, outs[1])):
        assert out.read_bytes() == files[got.peer].read_bytes()


async def test_one_sender_of_two_files_on_one_topic(mesh, tmp_path, file):
    files = [file(3_000_000, "a"), file(3_000_000, "b")]
    senders = [finish(sending(mesh, "twice", path)) for path in files]
    outs = [tmp_path / "one", tmp_path / "two"]
    await asyncio.gather(*(finish(receiving(mesh, "twice", out)) for out in outs), *senders)
    assert {out.read_bytes() for out in outs} == {path.read_bytes() for path in files}


async def test_stalled_topic_does_not_block_another(mesh, tmp_path, file):
    stalled = asyncio.ensure_future(finish(sending(mesh, "stalled", file(10_000_000, "big"))))
    await moves(mesh, "lively", file(10_000_000), tmp_path / "got")
    assert not stalled.done()
    await finish(receiving(mesh, "stalled", tmp_path / "late"))
    await stalled
    assert (tmp_path / "late").read_bytes() == (tmp_path / "big").read_bytes()


PART = wire.encode_part
LIES = {
    "too much": ([PART(0, b"four")], Reason.CHUNK_META),
    "no offset": ([b"short"], Reason.CHUNK_META),
    "nothing in it": ([bytes(8)], Reason.CHUNK_META),
    "wrong digest": ([PART(0, b"two"), PART(3, bytes(32))], Reason.DIGEST_MISMATCH),
    "half a digest": ([PART(0, b"two"), PART(3, bytes(16))], Reason.CHUNK_META),
}


async def offer(mesh, topic, size, *, attempt=1, name=None, node=RESEARCH):
    """Offer a file that no record knows of, as a hostile peer may; its id."""
    name = name or os.urandom(16).hex()
    await say(mesh, wire.Offer(name, attempt, topic, size), node)
    return name


async def say(mesh, message, node=RESEARCH):
    await mesh.nodes[node].mesh.channels.send(REGISTRY, wire.TOPIC, wire.encode(message), 5)


@pytest.mark.parametrize("lie", LIES)
async def test_lies_leave_nothing(mesh, tmp_path, file, lie):
    messages, reason = LIES[lie]
    topic = f"lies/{lie.replace(' ', '-').lower()}"
    name = await offer(mesh, topic, 3)
    transfer = receiving(mesh, topic, tmp_path / "got")
    await anext(transfer)
    for message in messages:
        await mesh.nodes[RESEARCH].mesh.channels.send(REGISTRY, wire.content_topic(name, 1), message, 5)
    await refused(transfer, reason)
    assert os.listdir(tmp_path) == []
    await moves(mesh, topic, file(1000), tmp_path / "got")


async def test_command_line(mesh, tmp_path, file):
    sent, out = file(3_000_000), tmp_path / "got"
    received = asyncio.ensure_future(tdn(mesh, REGISTRY, "channel", "recv", "cli", "--out", out, "--json"))
    code, text, err = await tdn(mesh, RESEARCH, "channel", "send", REGISTRY, "cli", sent, "--json")
    assert code == 0, err
    code, other, err = await received
    assert code == 0, err
    last, got = (json.loads(lines.splitlines()[-1]) for lines in (text, other))
    assert (last["done"], got["sha256"], got["sender"]) == (True, last["sha256"], RESEARCH)
    assert out.read_bytes() == sent.read_bytes()
    code, _, err = await tdn(
        mesh, REGISTRY, "channel", "recv", "cli", "--out", tmp_path / "x", "--timeout", "0.1"
    )
    assert (code, "DEADLINE" in err) == (4, True)
    code, _, err = await tdn(mesh, REGISTRY, "channel", "recv", "cli", "--out", out)
    assert (code, "OUTPUT_EXISTS" in err) == (3, True)


async def record(mesh, name, node=REGISTRY):
    (row,) = [row for row in await mesh.nodes[node].transfers.every() if row.transfer_id == name]
    return row


async def test_offers_of_others_and_other_offers_under_the_same_id(mesh, tmp_path, file):
    """T-DLV-02.N1, T-DLV-03.N3: bound to the certificate; the first content stays."""
    refusals = []
    mesh.nodes[REGISTRY].transfers._on_refusal = refusals.append
    (tmp_path / "sent").write_bytes(b"first")
    name = os.urandom(16).hex()
    transfer = mesh.nodes[RESEARCH].transfers.send(REGISTRY, "once", tmp_path / "sent", name)
    await asyncio.gather(finish(transfer), finish(receiving(mesh, "once", tmp_path / "got")))
    for size, node, reason in (
        (5, AIRLINE, Reason.IDENTITY_MISMATCH), (6, RESEARCH, Reason.KEY_CONFLICT), (5, RESEARCH, None)
    ):  # fmt: skip
        await offer(mesh, "once", size, attempt=7, name=name, node=node)
        await mesh.nodes[node].mesh.channels.flush(REGISTRY, wire.TOPIC, 5)
        while len(refusals) < (reason is not None):
            await asyncio.sleep(0.01)
        assert [error.reason for error in refusals] == ([reason] if reason else [])
        refusals.clear()
    await refused(receiving(mesh, "once", tmp_path / "again", 0.2), Reason.DEADLINE)
    assert (tmp_path / "got").read_bytes() == b"first"
    assert (await record(mesh, name)).state == "DELIVERED"


async def test_the_same_id_follows_the_same_transfer(mesh, tmp_path, file):
    """What a command does after its node was away: once there, it hears how it ended."""
    sent, name, asked = file(3_000_000), os.urandom(16).hex(), os.urandom(16).hex()
    out = tmp_path / "got"
    send, receive = mesh.nodes[RESEARCH].transfers.send, mesh.nodes[REGISTRY].transfers.receive
    for _ in range(2):
        gone, got = await asyncio.gather(
            finish(send(REGISTRY, "same", sent, name)), finish(receive("same", out, 20, asked))
        )
        assert (gone.done, got.done, got.transfer_id) == (True, True, name)
        assert gone.resumes == got.resumes == 0
    await refused(send(AIRLINE, "same", sent, name), Reason.KEY_CONFLICT)
    await refused(receive("other", out, 20, asked), Reason.KEY_CONFLICT)
    await refused(send(AIRLINE, "same", sent, "short"), Reason.INVALID_REQUEST)
    out.unlink()


async def test_too_many_offers_are_refused(mesh, tmp_path, file):
    """T-LIM-03: what nobody has asked for is bounded per peer."""
    refusals = []
    mesh.nodes[REGISTRY].transfers._on_refusal = refusals.append
    names = [await offer(mesh, "crowd", 1, node=AIRLINE) for _ in range(MAX_WAITING + 1)]
    while not refusals:
        await asyncio.sleep(0.01)
    assert [error.reason for error in refusals] == [Reason.RESOURCE_EXHAUSTED]
    bye = Failure(Reason.ABANDONED, "no", AIRLINE)
    for name in names:
        await say(mesh, wire.Withdrawal(name, 1, bye), AIRLINE)
    while mesh.nodes[REGISTRY].transfers._offers._waiting:
        await asyncio.sleep(0.01)
    await moves(mesh, "crowd", file(1000), tmp_path / "got")


async def test_content_that_nobody_accepted_ends_the_session(mesh, tmp_path):
    channels = mesh.nodes[AIRLINE].mesh.channels
    topic = wire.content_topic(os.urandom(16).hex(), 1)
    with pytest.raises(TdnError) as error:
        await channels.send(REGISTRY, topic, PART(0, b"x"), 5)
        await channels.flush(REGISTRY, topic, 5)
    assert error.value.reason is Reason.POLICY_DENIED


@pytest.mark.parametrize("restarted", [(RESEARCH,), (REGISTRY,), (RESEARCH, REGISTRY)])
async def test_nodes_that_restart_go_on(mesh, tmp_path, file, restarted):
    """A clean stop in the middle gives nothing up, and the commands hear that they may come back."""
    sent, out = file(30_000_000), tmp_path / "got"
    name, asked = os.urandom(16).hex(), os.urandom(16).hex()

    def both():
        return (
            mesh.nodes[RESEARCH].transfers.send(REGISTRY, "restart", sent, name),
            mesh.nodes[REGISTRY].transfers.receive("restart", out, 20, asked),
        )

    commands = dict(
        zip((RESEARCH, REGISTRY), [asyncio.ensure_future(finish(way)) for way in both()], strict=True)
    )
    while not (await _stored(mesh, name)):
        await asyncio.sleep(0.01)
    for node in restarted:
        await mesh.stop(node)
        await refused_as(commands[node], Reason.NODE_DOWN)
    for node in restarted:
        await mesh.start(node)
    gone, got = await asyncio.gather(*map(finish, both()))
    await asyncio.gather(*(command for node, command in commands.items() if node not in restarted))
    assert out.read_bytes() == sent.read_bytes()
    assert gone.sha256 == got.sha256
    assert gone.resumes >= 1
    assert gone.resent_bytes <= 17 << 20
    assert sorted(os.listdir(tmp_path)) == ["got", "sent"]


async def _stored(mesh, name):
    rows = await mesh.nodes[REGISTRY].transfers.every()
    return any(row.transfer_id == name and row.stored for row in rows)
