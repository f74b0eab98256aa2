"""What a message and the metadata of a call may hold, over a real server with the options of ours."""

import gzip
import tracemalloc

import grpc
import pytest
from prometheus_client import CollectorRegistry

from tdn_interop.errors import PeerProtocolError
from tdn_interop.transport import interceptors, rpc_metrics, server, status
from tests.transport.test_interceptors import BIDI, UNARY, peer_of, running


async def told(lab, kind, message, **options):
    """The refusal of a call, and what the server has noted."""
    path = f"/t.Echo/{kind}"
    make = lab.channel.unary_unary(path) if kind == UNARY else lab.channel.stream_stream(path)

    async def messages():
        yield message

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        if kind == UNARY:
            await make(message, timeout=5, **options)
        else:
            [m async for m in make(messages(), timeout=5, **options)]
    error = status.from_rpc_error(caught.value)
    assert [(e.reason, e.requirement) for e in lab.refused] == [(error.reason, error.requirement)]
    return error.reason.name, error.requirement


LIMIT = interceptors.MESSAGE_BYTES
BOMB = bytes(64 << 20)


@pytest.fixture
async def walls():
    """A server with the limits of ours."""
    refused = []
    metrics = rpc_metrics.RpcMetrics(CollectorRegistry(), "server")
    layers = interceptors.standard_layers(metrics, peer_of, refused.append)
    async with running(*layers, options=list(server.LIMITS.items())) as lab:
        lab.refused = refused
        yield lab


@pytest.mark.parametrize("kind", [UNARY, BIDI])
async def test_a_message_over_the_limit(walls, kind):
    assert await told(walls, kind, bytes(LIMIT + 1)) == ("TOO_LARGE", "TDN-T-LIM-01")


@pytest.mark.parametrize("kind", [UNARY, BIDI])
async def test_a_message_that_expands_past_the_limit(walls, kind):
    compressed = {"compression": grpc.Compression.Gzip}
    assert await told(walls, kind, bytes(LIMIT + 1), **compressed) == ("TOO_LARGE", "TDN-T-LIM-04")


WHOLE = gzip.compress(b"a whole message")


@pytest.mark.parametrize(
    "content", [interceptors.GZIP, interceptors.GZIP + b"garbage", WHOLE[:-5], gzip.compress(BOMB)[:-5]]
)
async def test_a_damaged_compressed_message(walls, content):
    expected = "TOO_LARGE" if len(content) > 1000 else "INVALID_REQUEST"
    assert await told(walls, UNARY, content) == (expected, "TDN-T-LIM-04")


async def test_expanding_holds_no_more_than_the_limit():
    small = gzip.compress(BOMB)
    tracemalloc.start()
    try:
        with pytest.raises(PeerProtocolError):
            interceptors._expanded(small)
        assert tracemalloc.get_traced_memory()[1] < 3 * LIMIT
    finally:
        tracemalloc.stop()


async def test_messages_of_the_limit_and_compressed_ones_are_served(walls):
    call = walls.channel.unary_unary(f"/t.Echo/{UNARY}")
    for message in (b"fine", bytes(LIMIT)):
        for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
            assert await call(message, timeout=5, compression=compression)
    assert walls.refused == []


@pytest.mark.parametrize("kind", [UNARY, BIDI])
async def test_too_much_metadata(walls, kind):
    size = interceptors.METADATA_BYTES
    metadata = grpc.aio.Metadata(("key-bin", bytes(size)))
    assert await told(walls, kind, b"fine", metadata=metadata) == ("TOO_LARGE", "TDN-T-LIM-03")


async def test_metadata_beyond_the_wall_ends_at_the_wall(walls):
    metadata = grpc.aio.Metadata(("key-bin", bytes(interceptors.METADATA_BYTES * 4)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await walls.channel.unary_unary(f"/t.Echo/{UNARY}")(b"fine", timeout=5, metadata=metadata)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await walls.channel.unary_unary(f"/t.Echo/{UNARY}")(b"fine", timeout=5)
