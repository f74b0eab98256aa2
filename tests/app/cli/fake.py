"""A node that answers the control service with fixed content, on a real unix socket."""

import contextlib
import sys
import threading
from concurrent import futures
from importlib.metadata import EntryPoint

import grpc
from grpc_status import rpc_status

from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import control_service_pb2_grpc as services
from tdn_interop._pb.tdn.app.v1 import (
    drain_pb2,
    mailbox_service_pb2,
    routes_pb2,
    snapshot_pb2,
    trust_service_pb2_grpc,
)
from tdn_interop._pb.tdn.common.v1.failure_pb2 import Failure
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role
from tdn_interop.config import control_socket, load_config, runtime_dir
from tdn_interop.transport import status
from tests.app.cli.fake_registry import FakeRegistry
from tests.app.cli.fake_trust import FakeTrust

COMMAND = [sys.executable, "-c", "from tdn_interop.app.cli import main; main()"]

JOB = "3f2a" + "0" * 28
SHA = "ab" * 32
FLOW = 'name = "overlap"\n'
FLOW_JSON = '{"name":"overlap","tasks":[{"inputs":[{"party":"bank-a.cn","resource":"bank-a.cn/loans","keys":["phone"]}]}]}'

ROUTES = routes_pb2.ListRoutesResponse(
    links=[
        routes_pb2.NeighbourLink(node="cn", kept_by="ours", linked=True),
        routes_pb2.NeighbourLink(node="hub-b.cn", kept_by="theirs", linked=False),
    ],
    routes=[
        routes_pb2.RouteEntry(
            prefix="hub-c.cn", next="cn", path=["cn", "hub-c.cn"], state="used", age_ms=12_000, expires_at_ms=1_700_000_060_000
        )
    ],
)  # fmt: skip
RESOURCE = pb.Resource(
    id="bank-a.cn/loans@1", path="/data/loans.csv", format=pb.CsvFormat(encoding="utf-8", delimiter=","),
    columns=["phone", "amount"], keys=["phone"], rows=1200, bytes=34567, sha256=SHA,
    registered_at_ms=1_700_000_000_000, distinct_keys=1100, duplicate_rows=100,
)  # fmt: skip


def job(state="RUNNING", progress=0.5, ended_at_ms=0, failure=None, **more):
    return pb.JobView(
        job_id=JOB, state=state, party_state="COMPUTING", flow="overlap", coordinator="bank-b.cn",
        parties=["bank-a.cn", "bank-b.cn"], recipients=["bank-b.cn"], algorithm="ecdh-psi/1", suite="curve25519",
        failure=failure, created_at_ms=1_700_000_000_000, ended_at_ms=ended_at_ms, facts={"rows": "1200"}, hops=2,
        progress=progress, flow_sha256=SHA, flow_json=FLOW_JSON,
        learns=[pb.Learning(party="bank-a.cn", en="A size.", zh="规模。"), pb.Learning(en="No more.", zh="仅此而已。")],
        **more,
    )  # fmt: skip


ENDED = 1_700_000_060_000
DONE = job("SUCCEEDED", 1.0, ENDED)


def failed(reason="POLICY_DENIED", message="not for this purpose"):
    failure = Failure(
        reason=reason,
        message=message,
        noticed_by="bank-b.cn",
        requirement="TDN-F-CTR-02",
        metadata={"party": "bank-b.cn"},
    )
    return job("FAILED", 0.5, ENDED, failure)


SNAPSHOT = snapshot_pb2.GetSnapshotResponse(
    node_id="bank-a.cn", role=Role.ROLE_HUB, at_ms=1_700_000_060_000, uptime_s=3725.5,
    certificate_expires_at_ms=1_700_036_060_000,
    links=[
        snapshot_pb2.LinkView(neighbour="cn", direction="up", linked=True, since_at_ms=1_700_000_000_000),
        snapshot_pb2.LinkView(neighbour="x.bank-a.cn", direction="down", linked=False),
    ],
    tunnels=[
        snapshot_pb2.TunnelView(
            id="aa", source="x.bank-a.cn", destination="bank-b.cn", forward_bytes=3 << 20, backward_bytes=4096,
            started_at_ms=1_700_000_058_000,
        )
    ],
    sessions=[
        snapshot_pb2.SessionView(
            peer="bank-b.cn", state="open", topics=3, queued_bytes=1 << 20, credit_bytes=3 << 20
        )
    ],
    transfers=[
        snapshot_pb2.TransferView(
            id="3f2a" * 8, direction="out", peer="bank-b.cn", topic="files", state="running",
            moved_bytes=50, total_bytes=200,
        )
    ],
    jobs=[
        snapshot_pb2.JobLine(
            job_id=JOB, coordinator="bank-b.cn", state="RUNNING", party_state="RUNNING", progress=0.5
        )
    ],
    mailboxes=[
        snapshot_pb2.MailboxView(
            recipient="away.bank-a.cn", letters=2, bytes=2048, oldest_at_ms=1_700_000_000_000
        )
    ],
    refusals=[snapshot_pb2.RefusalCount(reason="RATE_LIMITED", count=17)],
)  # fmt: skip

TRANSFER = pb.FileTransfer(
    transfer_id=JOB, direction="in", peer="bank-b.cn", topic="files/march", path="/data/new.zip", state="RECEIVING",
    total_bytes=1000, stored_bytes=400, created_at_ms=1_700_000_000_000,
)  # fmt: skip
LOST = pb.FileTransfer(transfer_id=SHA[:32], state="FAILED", failure=Failure(reason="NO_ROUTE"))


class FakeNode(services.NodeControlServiceServicer):
    """Notes every request; `error` makes every call fail, `watched` and `transfer` are its streams."""

    def __init__(self):
        self.requests = []
        self.error = None
        self.watched = [job(progress=0.1), job(progress=0.9), DONE]
        self.jobs = [DONE, job()]
        self.remaining = [(1, 9.5, False), (0, 8.5, True)]
        self.transfer = [(0, False), (400, False), (1000, True)]
        self.transfers = [TRANSFER]
        self.deaths = 0
        self.gone = False
        self.hang = threading.Event()  # set by a test that wants WatchJob to wait for the end of its caller
        self.hanging = threading.Event()

    def _note(self, request, context):
        self.requests.append(request)
        if self.error is not None:
            context.abort_with_status(rpc_status.to_status(status.to_status(self.error)))

    def GetSnapshot(self, request, context):
        self._note(request, context)
        return SNAPSHOT

    def Drain(self, request, context):
        self._note(request, context)
        for moving, left_s, stops in self.remaining:
            yield drain_pb2.DrainResponse(moving=moving, quiet=2, jobs=0, left_s=left_s, stops=stops)

    def Undrain(self, request, context):
        self._note(request, context)
        return drain_pb2.UndrainResponse()

    def GetStatus(self, request, context):
        self._note(request, context)
        if self.gone:
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return pb.GetStatusResponse(
            node_id="bank-a.cn", role=Role.ROLE_CHILD, identity_sha256=SHA, listen="127.0.0.1:7001", parent="cn",
            linked=True, certificate_expires_at_ms=1_700_000_000_000, log_size=7, peers=["bank-b.cn"], uptime_s=3725.5,
        )  # fmt: skip

    def CreateToken(self, request, context):
        self._note(request, context)
        return pb.CreateTokenResponse(token="dG9rZW4")

    def Ping(self, request, context):
        self._note(request, context)
        return pb.PingResponse(round_trip_ms=1.5, hops=["cn"], identity_sha256=SHA)

    def LookupRoute(self, request, context):
        self._note(request, context)
        return pb.LookupRouteResponse(
            destination="bank-b.cn", hops=["cn"], identity_sha256=SHA, expires_at_ms=1_700_000_000_000
        )

    def RegisterResource(self, request, context):
        self._note(request, context)
        return pb.RegisterResourceResponse(resource=RESOURCE)

    def ListResources(self, request, context):
        self._note(request, context)
        return pb.ListResourcesResponse(resources=[RESOURCE])

    def GetResource(self, request, context):
        self._note(request, context)
        return pb.GetResourceResponse(resource=RESOURCE)

    def RunJob(self, request, context):
        self._note(request, context)
        return pb.RunJobResponse(job_id=JOB)

    def DecideJob(self, request, context):
        self._note(request, context)
        return pb.DecideJobResponse()

    def ListJobs(self, request, context):
        self._note(request, context)
        return pb.ListJobsResponse(jobs=self.jobs)

    def GetJob(self, request, context):
        self._note(request, context)
        return pb.GetJobResponse(job=job())

    def WatchJob(self, request, context):
        self._note(request, context)
        for seen in self.watched:
            yield pb.WatchJobResponse(job=seen)
        if self.hang.is_set():
            gone = threading.Event()
            context.add_callback(gone.set)
            self.hanging.set()
            gone.wait(60)

    def CancelJob(self, request, context):
        self._note(request, context)
        return pb.CancelJobResponse()

    def GetBundle(self, request, context):
        self._note(request, context)
        return pb.GetBundleResponse(bundle=b"evidence", top_identity_key=bytes(32))

    def SendFile(self, request, context):
        self._note(request, context)
        for sent, done in self.transfer:
            yield pb.SendFileResponse(
                sent_bytes=sent, total_bytes=1000, done=done, **self._how(done, context)
            )

    def ReceiveFile(self, request, context):
        self._note(request, context)
        for received, done in self.transfer:
            yield pb.ReceiveFileResponse(
                received_bytes=received, total_bytes=1000, sender="bank-b.cn", done=done, **self._how(done, context)
            )  # fmt: skip

    def _how(self, done, context):
        """How a transfer went; with `deaths` left, the node dies before the end."""
        if done and self.deaths:
            self.deaths -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        return {"sha256": SHA, "resumes": 2, "resent_bytes": 300, "seconds": 1.5} if done else {}

    def ListTransfers(self, request, context):
        self._note(request, context)
        return pb.ListTransfersResponse(transfers=self.transfers)

    def ListMailboxes(self, request, context):
        self._note(request, context)
        box = mailbox_service_pb2.Mailbox(
            node_id="bank-b.cn", letters=3, bytes=4711, oldest_at_ms=1_700_000_000_000
        )
        return mailbox_service_pb2.ListMailboxesResponse(mailboxes=[box])

    def ListRoutes(self, request, context):
        self._note(request, context)
        return ROUTES

    def CancelTransfer(self, request, context):
        self._note(request, context)
        return pb.CancelTransferResponse()


@contextlib.contextmanager
def running(config_file):
    """A fake node behind the control socket of `config_file`."""
    fake = FakeNode()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    services.add_NodeControlServiceServicer_to_server(fake, server)
    trust_service_pb2_grpc.add_TrustServiceServicer_to_server(FakeTrust(), server)
    FakeRegistry.add_to(server, fake)
    config = load_config(config_file)
    runtime_dir(config.dir)
    server.add_insecure_port(control_socket(config))
    server.start()
    try:
        yield fake
    finally:
        server.stop(0).wait()


def points(*values):
    """A stand-in for `entry_points` that finds `values`."""
    return lambda group: [EntryPoint(f"a{i}", value, group) for i, value in enumerate(values)]
