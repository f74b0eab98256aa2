"""Layers around real calls of all four kinds, over a unix socket."""

import asyncio
import contextlib
import tempfile

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from prometheus_client import CollectorRegistry

from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, Refused, TdnError
from tdn_interop.transport import interceptors, rpc_metrics, status

UNARY, SERVER, CLIENT, BIDI = "Unary", "ServerStream", "ClientStream", "Bidi"
KINDS = [UNARY, SERVER, CLIENT, BIDI]
TYPES = {UNARY: "unary", SERVER: "server_stream", CLIENT: "client_stream", BIDI: "bidi_stream"}


async def act(request: bytes, context, hanging: asyncio.Event) -> bytes:
    if request == b"refuse":
        raise Refused(Reason.POLICY_DENIED, "not you", "TDN-F-TSK-02", party="bank-a.cn")
    if request == b"crash":
        raise ZeroDivisionError("secret inside")
    if request == b"abort":
        await context.abort(grpc.StatusCode.NOT_FOUND, "own words")
    if request == b"time out":
        raise TimeoutError
    if request == b"hang":
        hanging.set()
        await asyncio.Event().wait()
    return request


class Handlers:
    """Four behaviours of one echo service; the streams double what they see."""

    def __init__(self):
        self.hanging = asyncio.Event()
        self.closed = asyncio.Event()

    async def unary(self, request, context):
        return await act(request, context, self.hanging)

    async def server_stream(self, request, context):
        yield await act(request, context, self.hanging)
        yield request

    async def client_stream(self, requests, context):
        return b"".join([await act(request, context, self.hanging) async for request in requests])

    async def bidi(self, requests, context):
        async for request in requests:
            yield await act(request, context, self.hanging)
            yield request

    async def endless(self, request, context):
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            self.closed.set()

    async def written(self, requests, context):  # the style that calls read and write
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(await act(request, context, self.hanging))


def handlers(own: Handlers) -> grpc.GenericRpcHandler:
    return grpc.method_handlers_generic_handler(
        "t.Echo",
        {
            UNARY: grpc.unary_unary_rpc_method_handler(own.unary),
            SERVER: grpc.unary_stream_rpc_method_handler(own.server_stream),
            CLIENT: grpc.stream_unary_rpc_method_handler(own.client_stream),
            BIDI: grpc.stream_stream_rpc_method_handler(own.bidi),
            "Endless": grpc.unary_stream_rpc_method_handler(own.endless),
            "Written": grpc.stream_stream_rpc_method_handler(own.written),
        },
    )


class Lab:
    """A server with the standard layers, a channel with client metrics, and what both counted."""

    def __init__(self, own, channel, registry):
        self.own, self.channel, self.registry = own, channel, registry

    async def call(self, kind, *requests, timeout=5):
        async def stream():
            for request in requests:
                yield request

        path = f"/t.Echo/{kind}"
        if kind == UNARY:
            return await self.channel.unary_unary(path)(requests[0], timeout=timeout)
        if kind == CLIENT:
            return await self.channel.stream_unary(path)(stream(), timeout=timeout)
        make = self.channel.unary_stream if kind == SERVER else self.channel.stream_stream
        argument = requests[0] if kind == SERVER else stream()
        return [m async for m in make(path)(argument, timeout=timeout)]

    def sample(self, name, kind, side="server", **labels):
        labels |= {"grpc_type": TYPES.get(kind, "bidi_stream"), "grpc_service": "t.Echo", "grpc_method": kind}
        return self.registry.get_sample_value(f"grpc_{side}_{name}", labels)


def peer_of(peer: str) -> str:
    return "bank-a.cn"


def ignored(error: TdnError) -> None:
    pass


@contextlib.asynccontextmanager
async def running(*layers, registry=None, options=()):
    registry, own = registry or CollectorRegistry(), Handlers()
    client = rpc_metrics.client_interceptors(rpc_metrics.RpcMetrics(registry, "client"))
    with tempfile.TemporaryDirectory() as folder:
        server = grpc.aio.server(interceptors=[interceptors.ServerCalls(*layers)], options=options)
        server.add_generic_rpc_handlers([handlers(own)])
        server.add_insecure_port(f"unix:{folder}/s")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/s", interceptors=client) as channel:
            yield Lab(own, channel, registry)
        await server.stop(1)


@pytest.fixture
async def lab():
    registry = CollectorRegistry()
    metrics = rpc_metrics.RpcMetrics(registry, "server")
    refused = []
    layers = interceptors.standard_layers(metrics, peer_of, refused.append)
    async with running(*layers, registry=registry) as lab:
        lab.refused = refused
        yield lab


class Lines(list):
    """The events that were logged; `audit` waits for the line that ends the one call."""

    def __init__(self):
        self._ended = asyncio.Event()

    def __call__(self, logger, method, event):
        self.append(event | {"level": method})
        if event["event"] == "call":
            self._ended.set()
        raise structlog.DropEvent

    async def audit(self):
        """A client may hear of the end of its call before the layers around it have ended."""
        await self._ended.wait()
        return next(line for line in self if line["event"] == "call")


@pytest.fixture
def lines():
    found = Lines()
    structlog.configure(processors=[found])
    yield found
    structlog.reset_defaults()


@pytest.fixture
def client_ends(monkeypatch):
    """A queue with the code of every call that the client has counted as ended."""
    ends, handled = asyncio.Queue(), rpc_metrics.Timer.handled

    def noted(timer, code):
        handled(timer, code)
        if timer.metrics.calls_started._name == "grpc_client_started":
            ends.put_nowait(code)

    monkeypatch.setattr(rpc_metrics.Timer, "handled", noted)
    return ends


@pytest.mark.parametrize("kind", KINDS)
async def test_a_good_call_passes_and_is_counted(lab, lines, kind):
    answer = await lab.call(kind, b"four")
    expected = {UNARY: b"four", CLIENT: b"four", SERVER: [b"four"] * 2, BIDI: [b"four"] * 2}[kind]
    assert answer == expected
    line = await lines.audit()
    messages = len(answer) if isinstance(answer, list) else 1
    assert lab.sample("started_total", kind) == 1
    assert lab.sample("handled_total", kind, grpc_code="OK") == 1
    assert lab.sample("msg_received_total", kind) == 1
    assert lab.sample("msg_sent_total", kind) == messages
    assert lab.sample("handling_seconds_count", kind) == 1
    assert lab.refused == []
    assert line.pop("duration_s") >= 0
    assert line == {
        "event": "call", "level": "info", "peer": "bank-a.cn", "method": f"/t.Echo/{kind}", "code": "OK",
        "received_bytes": 4, "sent_bytes": 4 * messages,
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
async def test_a_refusal_arrives_with_its_reason(lab, lines, kind):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call(kind, b"refuse")
    found = status.from_rpc_error(caught.value)
    assert (type(found), found.reason, found.message) == (Refused, Reason.POLICY_DENIED, "not you")
    assert (found.requirement, found.metadata) == ("TDN-F-TSK-02", {"party": "bank-a.cn"})
    assert (await lines.audit())["code"] == "PERMISSION_DENIED"
    assert lab.sample("handled_total", kind, grpc_code="PermissionDenied") == 1
    assert [error.reason for error in lab.refused] == [Reason.POLICY_DENIED]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_defect_shows_only_its_correlation_id(lab, lines, kind):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call(kind, b"crash")
    found = status.from_rpc_error(caught.value)
    assert found.reason is Reason.INTERNAL
    line = await lines.audit()
    defect = lines[0]
    assert found.metadata == {"correlation": defect["correlation"]}
    assert defect["correlation"] in found.message
    wire = rpc_status.from_call(caught.value).SerializeToString() + caught.value.details().encode()
    assert b"secret" not in wire
    assert b"ZeroDivision" not in wire
    assert defect["exc_info"]
    assert line["code"] == "INTERNAL"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_handler_may_answer_with_a_code_of_its_own(lab, lines, kind):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call(kind, b"abort")
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "own words")
    assert (await lines.audit())["code"] == "NOT_FOUND"
    assert lab.sample("handled_total", kind, grpc_code="NotFound") == 1


async def test_handlers_that_read_and_write_are_counted_too(lab, lines):
    assert await lab.call("Written", b"ab", b"cd") == [b"ab", b"cd"]
    line = await lines.audit()
    assert (line["received_bytes"], line["sent_bytes"]) == (4, 4)
    assert lab.sample("msg_received_total", "Written") == 2


async def test_the_services_of_grpc_work_behind_the_layers(lines):
    registry = CollectorRegistry()
    layers = interceptors.standard_layers(rpc_metrics.RpcMetrics(registry, "server"), peer_of, ignored)
    server = grpc.aio.server(interceptors=[interceptors.ServerCalls(*layers)])
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    channelz.add_channelz_servicer(server)
    reflection.enable_server_reflection((health.SERVICE_NAME,), server)
    with tempfile.TemporaryDirectory() as folder:
        server.add_insecure_port(f"unix:{folder}/s")
        await server.start()
        async with grpc.aio.insecure_channel(f"unix:{folder}/s") as channel:
            probe, nobody = health_pb2.HealthCheckRequest(), health_pb2.HealthCheckRequest(service="t.Nobody")
            health_stub = health_pb2_grpc.HealthStub(channel)
            assert (await health_stub.Check(probe)).status == health_pb2.HealthCheckResponse.SERVING
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await health_stub.Check(nobody)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            watch = health_stub.Watch(probe)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
            servers = await channelz_pb2_grpc.ChannelzStub(channel).GetServers(
                channelz_pb2.GetServersRequest()
            )
            assert servers.server
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            explore = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([question]))
            answers = [answer async for answer in explore]
            assert [s.name for s in answers[0].list_services_response.service] == [health.SERVICE_NAME]
        await server.stop(None)
    assert {line["code"] for line in lines} >= {"OK", "NOT_FOUND"}


async def test_unknown_methods_make_no_metrics(lab):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call("Nowhere", b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert lab.sample("started_total", "Nowhere") is None


async def test_a_deadline_that_passes_is_told_from_a_cancel(lab, lines):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call(UNARY, b"hang", timeout=0.05)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert (await lines.audit())["code"] == "DEADLINE_EXCEEDED"


async def test_a_cancelled_call_is_counted_as_cancelled(lab, lines):
    call = lab.channel.unary_unary("/t.Echo/Unary")(b"hang", timeout=60)
    await lab.own.hanging.wait()
    call.cancel()
    assert (await lines.audit())["code"] == "CANCELLED"
    assert lab.sample("handled_total", UNARY, grpc_code="Canceled") == 1


async def test_a_stream_that_nobody_reads_any_more_ends_as_cancelled(lab, lines):
    call = lab.channel.unary_stream("/t.Echo/Endless")(b"", timeout=60)
    assert await call.read() == bytes(1 << 20)
    call.cancel()
    assert (await lines.audit())["code"] == "CANCELLED"
    assert await lab.own.closed.wait()


async def refusal(lab, kind, request, timeout):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await lab.call(kind, request, timeout=timeout)
    return status.from_rpc_error(caught.value), caught.value


@pytest.mark.parametrize("kind", KINDS)
async def test_absurd_deadlines_are_refused(kind):
    async with running(interceptors.translated(ignored), interceptors.limited(longest_s=100)) as lab:
        await lab.call(kind, b"fine", timeout=99)
        found, raw = await refusal(lab, kind, b"fine", 102)
    assert (found.reason, found.requirement) == (Reason.INVALID_REQUEST, "TDN-T-DDL-03")
    bad_request = error_details_pb2.BadRequest()
    assert any(packed.Unpack(bad_request) for packed in rpc_status.from_call(raw).details)
    assert bad_request.field_violations[0].field == "grpc-timeout"


async def test_a_unary_call_without_a_deadline_gets_one():
    async with running(interceptors.translated(ignored), interceptors.limited(default_s=0.05)) as lab:
        found, _ = await refusal(lab, UNARY, b"hang", None)
        assert (found.reason, found.requirement) == (Reason.DEADLINE, "TDN-T-DDL-02")
        found, _ = await refusal(lab, UNARY, b"time out", None)  # a TimeoutError of the handler itself
        assert found.reason is Reason.INTERNAL


async def test_a_passed_deadline_starts_nothing():
    class Context:
        def invocation_metadata(self):
            return ()

        def time_remaining(self):
            return 0.0

    call = interceptors.Call("/t.Echo/Unary", (False, False), Context())
    with pytest.raises(TdnError) as caught:
        async with interceptors.limited()(call):
            pytest.fail("the handler must not start")
    assert (caught.value.reason, caught.value.requirement) == (Reason.DEADLINE, "TDN-T-DDL-01")


async def test_a_caller_whom_nobody_verified_is_named_so(lines):
    def nobody(peer):
        raise Refused(Reason.UNAUTHENTICATED, "no certificate")

    async with running(interceptors.audited(nobody)) as lab:
        await lab.call(UNARY, b"x")
    assert (await lines.audit())["peer"] == "unverified (UNAUTHENTICATED)"


async def test_the_client_counts_its_calls(lab, client_ends):
    kind = UNARY
    await lab.call(kind, b"x")
    with pytest.raises(grpc.aio.AioRpcError):
        await lab.call(kind, b"refuse")
    ends = {await client_ends.get(), await client_ends.get()}
    assert ends == {grpc.StatusCode.OK, grpc.StatusCode.PERMISSION_DENIED}
    assert lab.sample("started_total", kind, "client") == 2
    assert lab.sample("handled_total", kind, "client", grpc_code="OK") == 1
    assert lab.sample("handled_total", kind, "client", grpc_code="PermissionDenied") == 1
    assert lab.sample("handling_seconds_count", kind, "client") == 2
    assert lab.sample("msg_sent_total", kind, "client") == 2
    assert lab.sample("msg_received_total", kind, "client") == 1


async def test_the_client_leaves_streams_alone(lab):
    assert await lab.call(BIDI, b"x") == [b"x"] * 2
    assert lab.sample("started_total", BIDI, "client") is None
    assert isinstance(lab.channel.stream_stream("/t.Echo/x")(), grpc.aio._call.StreamStreamCall)


def test_codes_are_spelled_as_go_spells_them():
    spelled = {rpc_metrics.go_code(code) for code in grpc.StatusCode}
    assert spelled == {
        "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists",
        "PermissionDenied", "Unauthenticated", "ResourceExhausted", "FailedPrecondition", "Aborted",
        "Unimplemented", "Internal", "Unavailable", "DataLoss", "OutOfRange",
    }  # fmt: skip


def test_a_peer_hears_of_our_troubles_only_what_the_table_says():
    own = ConfigError(Reason.STORE_UNAVAILABLE, "/secret/place: disk full", "TDN-F-RCV-01", path="/secret")
    told = interceptors.for_peers(own)
    assert type(told) is ConfigError
    assert (told.reason, told.requirement, told.metadata) == (own.reason, own.requirement, {})
    assert told.message == Reason.STORE_UNAVAILABLE.value.summary[0]
    theirs = PeerProtocolError(Reason.STATE_CONFLICT, "the proof starts at 3", lastSize=5)
    assert interceptors.for_peers(theirs) is theirs
