"""Files over three relays: whole or not at all, one after the other, and nobody waits for another topic."""

import asyncio
import contextlib
import json
import os

import pytest
import pytest_asyncio

from tdn_interop.app.transfer import PART_BYTES
from tdn_interop.errors import Reason, TdnError
from tests.app.job_mesh import restart, tdn
from tests.mesh import AIRLINE, REGISTRY, RESEARCH, mini_mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")
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


async def test_sent_before_anybody_receives(mesh, tmp_path, file):
    sent = file(100_000)
    assert (await finish(sending(mesh, "early", sent))).done
    await finish(receiving(mesh, "early", tmp_path / "got"))
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
    await refused(transfer, Reason.OUTPUT_EXISTS)
    await sender
    assert out.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["got", "sent"]


async def test_files_that_cannot_be(mesh, tmp_path, file):
    await refused(receiving(mesh, "t", tmp_path / "no" / "got"), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", tmp_path / "nothing"), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", tmp_path), Reason.INPUT_INVALID)
    await refused(sending(mesh, "t", file(1), to="nobody.guangdong.cn"), Reason.NO_ROUTE)
    assert os.listdir(tmp_path) == ["sent"]


async def test_nobody_sends(mesh, tmp_path):
    error = await refused(receiving(mesh, "quiet", tmp_path / "got", 0.05), Reason.DEADLINE)
    assert "quiet" in error.message
    assert os.listdir(tmp_path) == []


async def test_sender_gives_up(mesh, tmp_path, file):
    receiver = asyncio.ensure_future(finish(receiving(mesh, "given-up", tmp_path / "got")))
    transfer = sending(mesh, "given-up", file(5_000_000))
    await anext(transfer)
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
    await first
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


HEADER = b"H" + json.dumps({"bytes": 3}).encode()
LIES = {
    "no size": ([b"H{}"], Reason.CHUNK_META),
    "no JSON": ([b"H{"], Reason.CHUNK_META),
    "deep JSON": ([b"H" + b"[" * 100_000], Reason.CHUNK_META),
    "negative": ([b'H{"bytes":-1}'], Reason.CHUNK_META),
    "true": ([b'H{"bytes":true}'], Reason.CHUNK_META),
    "unknown kind": ([HEADER, b"Q"], Reason.CHUNK_META),
    "empty message": ([HEADER, b""], Reason.CHUNK_META),
    "too much": ([HEADER, b"Pfour"], Reason.DIGEST_MISMATCH),
    "too little": ([HEADER, b"Ptw", b"E" + bytes(32)], Reason.DIGEST_MISMATCH),
    "wrong digest": ([HEADER, b"Ptwo", b"E" + bytes(32)], Reason.DIGEST_MISMATCH),
    "no digest": ([HEADER, b"Ptwo", b"E"], Reason.DIGEST_MISMATCH),
}


@pytest.mark.parametrize("lie", LIES)
async def test_lies_leave_nothing(mesh, tmp_path, file, lie):
    messages, reason = LIES[lie]
    topic = f"lies/{lie.replace(' ', '-').lower()}"
    for message in messages:
        await mesh.nodes[RESEARCH].mesh.channels.send(REGISTRY, f"user/{topic}", message, 5)
    await refused(receiving(mesh, topic, tmp_path / "got"), reason)
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


async def test_sender_dies(mesh, tmp_path, file):
    """Last: the research node is gone after it."""
    receiver = asyncio.ensure_future(finish(receiving(mesh, "dies", tmp_path / "got")))
    transfer = sending(mesh, "dies", file(20_000_000))
    await anext(transfer)
    channels = mesh.nodes[RESEARCH].mesh.channels

    async def fall_silent(_timeout_s):
        for task in channels._runs:
            task.cancel()
        await asyncio.gather(*channels._runs, return_exceptions=True)

    channels.close = fall_silent
    await mesh.stop(RESEARCH)
    with pytest.raises(TdnError) as error:
        await receiver
    assert error.value.reason.value.exit_code in {4, 6}
    assert os.listdir(tmp_path) == ["sent"]
    with contextlib.suppress(TdnError):
        await transfer.aclose()
