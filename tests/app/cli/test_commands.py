"""Every command with one answer: text, JSON, the request it makes, both positions of the global options."""

import json
from dataclasses import dataclass

import pytest

from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tdn_interop._pb.tdn.app.v1 import routes_pb2
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role
from tests.app.cli import fake
from tests.app.cli.fake import JOB, SHA

RESOURCE = {
    "id": "bank-a.cn/loans@1", "path": "/data/loans.csv", "format": {"encoding": "utf-8", "delimiter": ","},
    "columns": ["phone", "amount"], "keys": ["phone"], "rows": 1200, "bytes": 34567, "sha256": SHA,
    "registered_at_ms": 1_700_000_000_000, "distinct_keys": 1100, "duplicate_rows": 100, "empty_rows": 0,
}  # fmt: skip
STATUS = {
    "node_id": "bank-a.cn", "role": "child", "identity_sha256": SHA, "listen": "127.0.0.1:7001", "parent": "cn",
    "linked": True, "certificate_expires_at_ms": 1_700_000_000_000, "log_size": 7, "peers": ["bank-b.cn"],
    "uptime_s": 3725.5, "members": [],
}  # fmt: skip
ROUTE = {
    "destination": "bank-b.cn", "hops": ["cn"], "identity_sha256": SHA, "expires_at_ms": 1_700_000_000_000
}  # fmt: skip


def job_document(state="RUNNING", progress=0.5, ended_at_ms=0, failure=None):
    return {
        "job_id": JOB, "state": state, "party_state": "COMPUTING", "flow": "overlap", "coordinator": "bank-b.cn",
        "parties": ["bank-a.cn", "bank-b.cn"], "recipients": ["bank-b.cn"], "algorithm": "ecdh-psi/1",
        "suite": "curve25519", "failure": failure, "created_at_ms": 1_700_000_000_000, "ended_at_ms": ended_at_ms,
        "facts": {"rows": "1200"}, "hops": 2, "progress": progress, "flow_sha256": SHA,
        "flow_json": fake.FLOW_JSON, "party_states": {},
        "learns": [{"party": "bank-a.cn", "en": "A size.", "zh": "规模。"}, {"party": "", "en": "No more.", "zh": "仅此而已。"}],
    }  # fmt: skip


DONE_DOCUMENT = job_document("SUCCEEDED", 1.0, fake.ENDED)


@dataclass
class Case:
    """A command line, the request it makes, the JSON it prints and words of its text."""

    line: str
    request: object
    document: object
    words: list[str]


HERE = "{folder}"
CASES = [
    Case("node status", pb.GetStatusRequest(), STATUS, ["bank-a.cn", "child", SHA, "yes", "1:02:05", "2023-11-1"]),
    Case(
        "enrol invite bank-a.cn --role hub --valid 2h",
        pb.CreateTokenRequest(node_id="bank-a.cn", role=Role.ROLE_HUB, valid_s=7200), {"token": "dG9rZW4"}, ["dG9rZW4"],
    ),
    Case(
        "enrol invite bank-a.cn", pb.CreateTokenRequest(node_id="bank-a.cn", role=Role.ROLE_CHILD, valid_s=86400),
        {"token": "dG9rZW4"}, ["dG9rZW4"],
    ),
    Case(
        "ping bank-b.cn --timeout 3", pb.PingRequest(node_id="bank-b.cn", timeout_s=3),
        {"round_trip_ms": 1.5, "hops": ["cn"], "identity_sha256": SHA}, ["1.50 ms", "cn", SHA],
    ),
    Case("route lookup bank-b.cn", pb.LookupRouteRequest(name="bank-b.cn"), ROUTE, ["bank-b.cn", SHA]),
    Case("route lookup bank-b.cn/loans", pb.LookupRouteRequest(name="bank-b.cn/loans"), ROUTE, ["bank-b.cn"]),
    Case(
        "route show", routes_pb2.ListRoutesRequest(),
        {
            "links": [
                {"node": "cn", "kept_by": "ours", "linked": True},
                {"node": "hub-b.cn", "kept_by": "theirs", "linked": False},
            ],
            "routes": [{
                "prefix": "hub-c.cn", "next": "cn", "path": ["cn", "hub-c.cn"], "state": "used", "age_ms": 12000,
                "expires_at_ms": 1_700_000_060_000,
            }],
        },
        ["hub-b.cn", "theirs", "hub-c.cn", "used", "12 s"],
    ),
    Case(
        "resource register data/loans.csv --name loans --key phone --key amount --encoding gbk --delimiter ;",
        pb.RegisterResourceRequest(
            name="loans", path=f"{HERE}/data/loans.csv", keys=["phone", "amount"],
            format=pb.CsvFormat(encoding="gbk", delimiter=";"),
        ),
        RESOURCE, ["bank-a.cn/loans@1", "1200", SHA, "33.8 KiB"],
    ),
    Case("resource ls", pb.ListResourcesRequest(), {"resources": [RESOURCE]}, ["bank-a.cn/loans@1", "1200", "phone"]),
    Case("resource show bank-a.cn/loans", pb.GetResourceRequest(id="bank-a.cn/loans"), RESOURCE, ["/data/loans.csv"]),
    Case("job run flow.toml --no-wait", pb.RunJobRequest(flow_toml=fake.FLOW), {"job_id": JOB}, [JOB]),
    Case("job run flow.toml", pb.RunJobRequest(flow_toml=fake.FLOW), DONE_DOCUMENT, [JOB, "SUCCEEDED", "0:01:00"]),
    Case(
        "job approve 3f2a --comment fine", pb.DecideJobRequest(job_id="3f2a", approve=True, comment="fine"),
        {"job_id": "3f2a", "approved": True}, [],
    ),
    Case(
        "job approve 3f2a --refuse", pb.DecideJobRequest(job_id="3f2a"), {"job_id": "3f2a", "approved": False}, [],
    ),
    Case("job ls", pb.ListJobsRequest(), {"jobs": [DONE_DOCUMENT, job_document()]}, [JOB[:12], "SUCCEEDED", "50%"]),
    Case("job show 3f2a", pb.GetJobRequest(job_id="3f2a"), job_document(), [
        JOB, "1200", "bank-a.cn, bank-b.cn", "bank-a.cn/loans (phone)", "A size.", "in general", "50%",
    ]),
    Case(
        "job cancel 3f2a --comment wrong", pb.CancelJobRequest(job_id="3f2a", comment="wrong"), {"job_id": "3f2a"}, [],
    ),
    Case(
        "job bundle 3f2a --out job.bundle", pb.GetBundleRequest(job_id="3f2a"),
        {"out": "job.bundle", "bytes": 8, "top_identity_key": "00" * 32}, ["job.bundle", "8 B", "00" * 32],
    ),
]  # fmt: skip


def expected_request(case, folder):
    request = type(case.request)()
    request.CopyFrom(case.request)
    if hasattr(request, "path"):
        request.path = request.path.replace(HERE, str(folder))
    return request


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
def test_text(case, node, tdn, folder):
    code, out, _ = tdn(*case.line.split())
    assert code == 0
    assert node.requests[0] == expected_request(case, folder)
    assert [word for word in case.words if word not in out] == []
    assert "{" not in out


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line)
@pytest.mark.parametrize("after", [True, False], ids=["options after", "options before"])
def test_json(case, after, node, tdn, folder):
    elsewhere = folder / "other.toml"
    (folder / "node.toml").rename(elsewhere)
    options = ["--json", "--config", str(elsewhere)]
    words = case.line.split()
    code, out, err = tdn(*([*words, *options] if after else [*options, *words]))
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert json.loads(out) == case.document


@pytest.mark.parametrize("line", ["job approve 3f2a", "job approve 3f2a --refuse", "job cancel 3f2a"])
def test_what_has_no_data_says_so_on_stderr(line, node, tdn):
    code, out, err = tdn(*line.split())
    assert (code, out) == (0, "")
    assert "3f2a" in err


def test_a_bundle_is_written_once(node, tdn, folder):
    assert tdn("job", "bundle", "3f2a", "--out", "job.bundle")[0] == 0
    assert (folder / "job.bundle").read_bytes() == b"evidence"
    code, _, err = tdn("job", "bundle", "3f2a", "--out", "job.bundle", "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (3, "OUTPUT_EXISTS")
    assert tdn("job", "bundle", "3f2a", "--out", "nowhere/job.bundle")[0] == 3


def test_an_empty_list_is_not_an_empty_screen(node, tdn):
    node.jobs = []
    assert tdn("job", "ls") == (0, "", "none\n")
    assert tdn("job", "ls", "--lang", "zh") == (0, "", "无\n")
    assert tdn("job", "ls", "--json") == (0, '{"jobs": []}\n', "")
