"""Every command against a fake node: text, JSON, requests, both positions of the global options."""

import json
import os
import pathlib
import pty
import shlex
import signal
import subprocess
import sys
import types
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from tdn_interop import identity
from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tdn_interop._pb.tdn.common.v1.identity_pb2 import Role
from tdn_interop.app import cli
from tdn_interop.app.cli import adapters
from tdn_interop.config import runtime_dir
from tdn_interop.transport.trust import Membership
from tests.app import cli_fake
from tests.app.cli_fake import JOB, SHA
from tests.app.evidence_mesh import papers

COMMAND = [sys.executable, "-c", "from tdn_interop.app.cli import main; main()"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with everything the examples name; the working directory of the test."""
    (tmp_path / "node.toml").write_text('id = "bank-a.cn"\nrole = "child"\n')
    (tmp_path / "flow.toml").write_text(cli_fake.FLOW)
    monkeypatch.chdir(tmp_path)
    for name in ("TDN_CONFIG", "NO_COLOR", "CI"):
        monkeypatch.delenv(name, raising=False)
    yield tmp_path
    sockets = runtime_dir(tmp_path)
    for file in sockets.iterdir():
        file.unlink()
    sockets.rmdir()


@pytest.fixture
def node(folder):
    with cli_fake.running(folder / "node.toml") as fake:
        yield fake


@pytest.fixture
def tdn(capsys):
    """Run a command line; (exit code, stdout, stderr)."""

    def call(*words):
        code = cli.run([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


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
        "facts": {"rows": "1200"}, "hops": 2, "progress": progress, "flow_sha256": SHA, "flow_json": "",
    }  # fmt: skip


DONE_DOCUMENT = job_document("SUCCEEDED", 1.0, cli_fake.ENDED)


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
        "resource register data/loans.csv --name loans --key phone --key amount --encoding gbk --delimiter ;",
        pb.RegisterResourceRequest(
            name="loans", path=f"{HERE}/data/loans.csv", keys=["phone", "amount"],
            format=pb.CsvFormat(encoding="gbk", delimiter=";"),
        ),
        RESOURCE, ["bank-a.cn/loans@1", "1200", SHA, "33.8 KiB"],
    ),
    Case("resource ls", pb.ListResourcesRequest(), {"resources": [RESOURCE]}, ["bank-a.cn/loans@1", "1200", "phone"]),
    Case("resource show bank-a.cn/loans", pb.GetResourceRequest(id="bank-a.cn/loans"), RESOURCE, ["/data/loans.csv"]),
    Case("job run flow.toml --no-wait", pb.RunJobRequest(flow_toml=cli_fake.FLOW), {"job_id": JOB}, [JOB]),
    Case("job run flow.toml", pb.RunJobRequest(flow_toml=cli_fake.FLOW), DONE_DOCUMENT, [JOB, "SUCCEEDED", "100%"]),
    Case(
        "job approve 3f2a --comment fine", pb.DecideJobRequest(job_id="3f2a", approve=True, comment="fine"),
        {"job_id": "3f2a", "approved": True}, [],
    ),
    Case(
        "job approve 3f2a --refuse", pb.DecideJobRequest(job_id="3f2a"), {"job_id": "3f2a", "approved": False}, [],
    ),
    Case("job ls", pb.ListJobsRequest(), {"jobs": [DONE_DOCUMENT, job_document()]}, [JOB, "SUCCEEDED", "50%"]),
    Case("job show 3f2a", pb.GetJobRequest(job_id="3f2a"), job_document(), [JOB, "rows=1200", "bank-a.cn, bank-b.cn"]),
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


# -- streams


def test_watch_prints_each_change_as_a_line(node, tdn):
    code, out, err = tdn("job", "watch", "3f2a", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(line)["progress"] for line in out.splitlines()] == [0.1, 0.9, 1.0]
    assert node.requests == [pb.WatchJobRequest(job_id="3f2a")]


def test_watch_prints_the_end_for_people(node, tdn):
    code, out, _ = tdn("job", "watch", "3f2a")
    assert code == 0
    assert out.count(JOB) == 1
    assert "SUCCEEDED" in out


@pytest.mark.parametrize("line", ["job run flow.toml", "job watch 3f2a"])
@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [("POLICY_DENIED", 5), ("JOB_CANCELLED", 1), ("PARTY_LOST", 4), ("NEWER_THAN_US", 70)],
)
def test_a_job_that_fails_ends_the_command_with_its_reason(line, reason, exit_code, node, tdn):
    node.watched = [cli_fake.job(), cli_fake.failed(reason)]
    code, out, err = tdn(*line.split(), "--json")
    assert code == exit_code
    assert json.loads(out.splitlines()[-1])["failure"]["reason"] == reason
    error = json.loads(err)["error"]
    assert error["reason"] == (reason if exit_code != 70 else "INTERNAL")
    assert (error["requirement"], error["metadata"]) == ("TDN-F-CTR-02", {"party": "bank-b.cn"})
    code, out, err = tdn(*line.split())
    assert code == exit_code
    assert "FAILED" in out
    assert "not for this purpose" in err


@pytest.mark.parametrize("watched", [[], [cli_fake.job()]], ids=["silent", "cut short"])
def test_an_answer_that_is_cut_short_is_no_success(watched, node, tdn):
    node.watched = watched
    code, _, err = tdn("job", "run", "flow.toml", "--json")
    assert (code, json.loads(err)["error"]["requirement"]) == (70, "TDN-X-CLI-03")


TRANSFERS = [
    ("channel send bank-b.cn files/march march.zip", "sent_bytes",
     lambda folder: pb.SendFileRequest(node_id="bank-b.cn", topic="files/march", path=f"{folder}/march.zip")),
    ("channel recv files/march --out new.zip --timeout 5", "received_bytes",
     lambda folder: pb.ReceiveFileRequest(topic="files/march", out=f"{folder}/new.zip", timeout_s=5)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "counter", "request_of"), TRANSFERS)
def test_transfers(line, counter, request_of, node, tdn, folder):
    code, out, err = tdn(*line.split(), "--json")
    assert (code, err) == (0, "")
    assert node.requests == [request_of(folder)]
    assert [json.loads(step)[counter] for step in out.splitlines()] == [0, 400, 1000]
    code, out, err = tdn(*line.split())
    assert (code, err) == (0, "")  # no bar where there is no terminal
    assert SHA in out
    assert "1000 B" in out


@pytest.mark.parametrize(("line", "counter", "request_of"), TRANSFERS)
def test_a_transfer_that_stops_early_is_no_success(line, counter, request_of, node, tdn):
    node.transfer = node.transfer[:-1]
    assert tdn(*line.split())[0] == 70


def on_terminal(words):
    """Exit code and what a person sees on stderr, which is a terminal; stdout is not."""
    screen, ours = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, *words], stdout=subprocess.PIPE, stderr=ours, stdin=subprocess.DEVNULL
    )
    os.close(ours)
    seen = bytearray()
    with child.stdout:
        child.stdout.read()
    while True:
        try:
            part = os.read(screen, 65536)
        except OSError:  # Linux reports the end of a terminal so
            break
        seen += part
    os.close(screen)
    return child.wait(), seen.decode()


def test_a_terminal_gets_a_bar_with_rate_and_remaining_time(node, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    words = ["channel", "send", "bank-b.cn", "files", "march.zip"]
    code, seen = on_terminal(words)
    assert code == 0
    assert "sending" in seen
    assert "1.0/1.0 kB" in seen
    assert on_terminal([*words, "--json"]) == (0, "")
    monkeypatch.setenv("CI", "true")
    assert on_terminal(words) == (0, "")
    monkeypatch.delenv("CI")
    monkeypatch.setenv("NO_COLOR", "1")
    assert on_terminal(words) == (0, "")


@pytest.mark.parametrize(
    ("lang", "words"), [("en", ["interrupted", "goes on"]), ("zh", ["已中断", "作业仍在继续"])]
)
def test_an_interrupt_ends_with_130_and_a_line(lang, words, node, monkeypatch):
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    node.watched = [cli_fake.job()]
    node.hang.set()
    line = [*COMMAND, "job", "run", "flow.toml", "--lang", lang]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert node.hanging.wait(60)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out) == (130, b"")
    assert [word for word in words if word not in err.decode()] == []
    assert "Traceback" not in err.decode()


# -- commands that need no node


@pytest.fixture
def modules(monkeypatch):
    """Stand-ins for the parts of a node that these commands call; what they were called with."""
    calls = []

    def stand_in(module, **functions):
        found = types.ModuleType(f"tdn_interop.app.{module}")
        vars(found).update(functions)
        monkeypatch.setitem(sys.modules, found.__name__, found)
        monkeypatch.setattr(f"tdn_interop.app.{module}", found, raising=False)

    async def join(config, token):
        calls.append(("join", config.id, token))

    async def run_node(config):
        calls.append(("run", config.id))

    def init_node(directory, node, role, *, listen, enrolment):
        calls.append(("init", directory, node, role, listen, enrolment))
        return pathlib.Path(directory, "node.toml")

    @dataclass
    class Finding:
        name: str
        ok: bool
        detail: str
        advice: str

    findings = [Finding("certificate", True, "24 h left", ""), Finding("port", True, "free", "")]
    stand_in("setup", init_node=init_node, join=join)
    stand_in("check", check_node=lambda config: findings)
    stand_in("node", run_node=run_node)
    stand_in("telemetry", set_up_logging=lambda log, *, verbose: calls.append(("log", log, verbose)))
    return types.SimpleNamespace(calls=calls, findings=findings, Finding=Finding)


def test_node_init(folder, modules, tdn):
    words = [
        "node",
        "init",
        "hub.cn",
        "--role",
        "hub",
        "--dir",
        "made",
        "--listen",
        "127.0.0.1:7001",
        "--enrolment",
        "127.0.0.1:7002",
    ]
    code, out, _ = tdn(*words, "--json")
    assert code == 0
    assert modules.calls == [
        ("init", pathlib.Path("made"), "hub.cn", "hub", "127.0.0.1:7001", "127.0.0.1:7002")
    ]
    assert json.loads(out) == {"node_id": "hub.cn", "role": "hub", "path": "made/node.toml"}
    assert "made/node.toml" in tdn(*words)[1]


def test_node_run(folder, modules, tdn):
    assert tdn("node", "run", "-v") == (0, "", "")
    assert modules.calls == [("log", None, True), ("run", "bank-a.cn")]


def test_enrol_join(folder, modules, tdn):
    code, out, err = tdn("enrol", "join", "dG9rZW4")
    assert (code, out, modules.calls) == (0, "", [("join", "bank-a.cn", "dG9rZW4")])
    assert "tdn node run" in err
    assert tdn("enrol", "join", "dG9rZW4", "--json") == (0, '{"node_id": "bank-a.cn"}\n', "")


def test_node_check(folder, modules, tdn):
    code, out, _ = tdn("node", "check", "--json")
    assert code == 0
    assert json.loads(out)["findings"][0] == {
        "name": "certificate",
        "ok": True,
        "detail": "24 h left",
        "advice": "",
    }
    modules.findings.append(modules.Finding("clock", False, "90 s ahead", "set it"))
    code, out, _ = tdn("node", "check", "--lang", "zh")
    assert code == 3
    assert [word for word in ["clock", "90 s ahead", "set it", "否", "建议"] if word not in out] == []


def points(*values):
    return lambda group: [EntryPoint(f"a{i}", value, group) for i, value in enumerate(values)]


def test_adapter_ls(monkeypatch, tdn):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads"))
    code, out, _ = tdn("adapter", "ls", "--json")
    assert code == 0
    assert json.loads(out) == {"adapters": [{"name": "a0", "value": "json:loads", "ok": True, "detail": ""}]}


def test_a_broken_adapter_is_a_red_line_and_exit_code_3(monkeypatch, tdn):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads", "nowhere_to_be_found:Adapter"))
    code, out, _ = tdn("adapter", "ls", "--json")
    assert code == 3
    assert [adapter["ok"] for adapter in json.loads(out)["adapters"]] == [True, False]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = tdn("adapter", "ls")
    red = [line for line in out.splitlines() if "\x1b[31m" in line]
    assert code == 3
    assert len(red) == 1
    assert "nowhere_to_be_found" in red[0]


def test_adapters_of_this_installation_load(tdn):
    assert tdn("adapter", "ls")[0] == 0


@pytest.fixture
def bundle(folder):
    """A real bundle of two parties, the key of its top, and the statement the node got when it enrolled."""
    made = papers(["bank-a.shandong.cn", "bank-b.shandong.cn"])
    (folder / "job.bundle").write_bytes(made.bundle())
    (folder / "top.key").write_text(made.top_key.hex().upper() + "\n")
    return made


def test_evidence_verify(bundle, tdn):
    for key in (bundle.top_key.hex(), "top.key"):
        code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", key, "--json")
        assert (code, err) == (0, "")
        document = json.loads(out)
        assert (document["outcome"], document["top"]) == ("SUCCEEDED", "cn")
        assert document["steps"]
        assert [party["node"] for party in document["parties"]] == [
            "bank-a.shandong.cn",
            "bank-b.shandong.cn",
        ]


def test_evidence_verify_for_people(bundle, tdn):
    code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", "top.key", "--lang", "zh")
    assert (code, err) == (0, "存证验证通过。\n")
    rows = [line.split() for line in out.splitlines()]
    assert ["结果", "SUCCEEDED"] in rows
    assert [row[-3:] for row in rows if row[0] == "bank-b.shandong.cn"] == [
        ["bank-b.shandong.cn,", "shandong.cn,", "cn"]
    ]


def test_evidence_that_does_not_hold_ends_with_1(bundle, folder, tdn):
    content = bytearray(bundle.bundle())
    content[-1] ^= 1
    (folder / "job.bundle").write_bytes(content)
    code, out, err = tdn("evidence", "verify", "job.bundle", "--top-key", "top.key", "--json")
    assert (code, out, json.loads(err)["error"]["reason"]) == (1, "", "EVIDENCE_BROKEN")


@pytest.mark.parametrize("words", ["--top-key missing", "--top-key flow.toml", "--top-key 0a0b"])
def test_evidence_verify_names_a_bad_key(words, bundle, tdn):
    code, _, err = tdn("evidence", "verify", "job.bundle", *words.split(), "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (3, "INPUT_INVALID")


def test_evidence_verify_uses_the_key_this_node_trusts(bundle, folder, tdn):
    code, _, err = tdn("evidence", "verify", "job.bundle", "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (3, "NOT_ENROLLED")
    record = identity.Signed(b"record", "cn", bytes(64))
    Membership("cn", bundle.top_key, "cn", "127.0.0.1:1", record, record).save(folder / "membership.json")
    assert tdn("evidence", "verify", "job.bundle")[0] == 0


# -- help


def commands():
    """(words, command) of every command and group."""
    root = cli.typer.main.get_command(cli.app)
    found = [((), root)]
    for words, command in found:
        children = getattr(command, "commands", {})
        found += [((*words, name), child) for name, child in children.items()]
    return found


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_of_every_command(words, tdn):
    code, out, _ = tdn(*words, "--help")
    assert code == 0
    assert "Usage: tdn" in out


EXAMPLES = {words: command.epilog for words, command in commands() if not hasattr(command, "commands")}


def test_every_command_has_an_example():
    assert [
        words for words, epilog in EXAMPLES.items() if not (epilog or "").startswith("Example: tdn ")
    ] == []


# These start whole meshes and have tests of their own.
LONG = ("lab", "demo")


@pytest.mark.parametrize("words", [words for words in EXAMPLES if words[0] not in LONG], ids=" ".join)
def test_examples_run(words, node, tdn, folder, modules, bundle, monkeypatch):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads"))
    if words == ("job", "bundle"):
        (folder / "job.bundle").unlink()
    (folder / "bank-a").symlink_to(".")
    line = shlex.split(EXAMPLES[words].removeprefix("Example: tdn "))
    assert tuple(line[: len(words)]) == words
    assert tdn(*line)[0] == 0


def test_help_is_quick():
    script = (
        "import sys; from tdn_interop.app.cli import run; run(['--help'])\n"
        "sys.exit(','.join({'grpc', 'pydantic', 'sqlalchemy', 'cryptography', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_command_is_this_one():
    done = subprocess.run([*COMMAND, "job", "nonsense"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nonsense" in done.stderr
