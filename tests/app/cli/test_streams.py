"""Commands that follow a stream: jobs to their end, transfers, terminals, interrupts."""

import json
import os
import pty
import signal
import subprocess

import pytest

from tdn_interop._pb.tdn.app.v1 import control_service_pb2 as pb
from tests.app.cli import fake
from tests.app.cli.fake import COMMAND, JOB, SHA


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
    node.watched = [fake.job(), fake.failed(reason)]
    code, out, err = tdn(*line.split(), "--json")
    assert code == exit_code
    assert json.loads(out.splitlines()[-1])["failure"]["reason"] == reason
    error = json.loads(err)["error"]
    assert error["reason"] == (reason if exit_code != 70 else "INTERNAL")
    assert error["requirement"] == "TDN-F-CTR-02"
    assert error["metadata"] == {"party": "bank-b.cn", "noticed_by": "bank-b.cn"}
    code, out, err = tdn(*line.split())
    assert code == exit_code
    assert "FAILED" in out
    assert "not for this purpose" in err
    assert "bank-b.cn" in err
    assert "not for this purpose" not in out


def test_the_operator_meant_is_that_of_the_node_that_noticed(node, tdn):
    node.watched = [fake.failed("INPUT_INVALID")]
    assert "the operator of bank-b.cn" in tdn("job", "watch", "3f2a")[2]
    assert "bank-b.cn 的运营方" in tdn("job", "watch", "3f2a", "--lang", "zh")[2]
    node.error = None
    assert "the operator of this node" in tdn("job", "run", "nothing.toml")[2]


def test_the_flow_is_shown_on_request(node, tdn):
    _, plain, _ = tdn("job", "show", "3f2a")
    _, more, _ = tdn("job", "show", "3f2a", "-v")
    assert '"name": "overlap"' not in plain
    assert '  "name": "overlap",' in more.splitlines()


def test_a_pipe_gets_no_blanks_at_line_ends(node, tdn):
    node.watched = [fake.failed()]
    for line in ("job show 3f2a", "job ls", "job watch 3f2a", "resource ls"):
        _, out, err = tdn(*line.split())
        assert [text for text in (out + err).splitlines() if text != text.rstrip()] == []


def test_a_job_that_ends_otherwise_exits_with_1(node, tdn):
    node.watched = [fake.job("CANCELLED", 0.5, fake.ENDED)]
    assert tdn("job", "watch", "3f2a")[0] == 1


def test_run_tells_the_job_before_it_waits(node, tdn):
    assert JOB in tdn("job", "run", "flow.toml")[2]


@pytest.mark.parametrize("watched", [[], [fake.job()]], ids=["silent", "cut short"])
def test_an_answer_that_is_cut_short_is_no_success(watched, node, tdn):
    node.watched = watched
    code, _, err = tdn("job", "run", "flow.toml", "--json")
    assert (code, json.loads(err)["error"]["requirement"]) == (70, "TDN-X-CLI-03")


TRANSFERS = [
    ("channel send bank-b.cn files/march march.zip", "sent_bytes", "transfer_id",
     lambda folder: pb.SendFileRequest(node_id="bank-b.cn", topic="files/march", path=f"{folder}/march.zip")),
    ("channel recv files/march --out new.zip --timeout 5", "received_bytes", "receive_id",
     lambda folder: pb.ReceiveFileRequest(topic="files/march", out=f"{folder}/new.zip", timeout_s=5)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "counter", "name", "request_of"), TRANSFERS)
def test_transfers(line, counter, name, request_of, node, tdn, folder):
    code, out, err = tdn(*line.split(), "--json")
    assert (code, err) == (0, "")
    (request,) = node.requests
    assert len(getattr(request, name)) == 32
    request.ClearField(name)
    assert request == request_of(folder)
    steps = [json.loads(step) for step in out.splitlines()]
    assert [step[counter] for step in steps] == [0, 400, 1000]
    wanted = {"bytes": 1000, "sha256": SHA, "resumes": 2, "resent_bytes": 300, "seconds": 1.5, "done": True}
    assert steps[-1].items() >= wanted.items()
    code, out, err = tdn(*line.split())
    assert (code, err) == (0, "")  # no bar where there is no terminal
    assert SHA in out
    assert "1000 B" in out


@pytest.mark.parametrize("line", [transfer[0] for transfer in TRANSFERS])
def test_a_transfer_goes_on_when_its_node_is_back(line, node, tdn):
    """It asks again under the same id, as soon as the node answers."""
    node.deaths = 2
    code, out, err = tdn(*line.split(), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["sha256"] == SHA
    asked = [request for request in node.requests if not isinstance(request, pb.GetStatusRequest)]
    assert len(asked) == 3
    assert all(request == asked[0] for request in asked)


@pytest.mark.parametrize("line", [transfer[0] for transfer in TRANSFERS])
def test_a_node_that_stays_away_is_down(line, node, tdn):
    node.deaths = 1
    node.gone = True
    code, _, err = tdn(*line.split(), "--patience", "0.3")
    assert code == 4
    assert "bank-a.cn does not answer" in err
    assert "NODE_DOWN" in err


@pytest.mark.parametrize("line", [transfer[0] for transfer in TRANSFERS])
def test_a_node_that_was_never_there_is_not_waited_for(line, folder, tdn):
    code, _, err = tdn(*line.split())
    assert code == 4
    assert "NODE_DOWN" in err
    assert "waiting" not in err


def test_transfers_are_listed_and_given_up(node, tdn):
    code, out, _ = tdn("channel", "ls")
    assert (code, "RECEIVING" in out, "3f2a000000000 " in out) == (0, True, False)
    code, out, _ = tdn("channel", "ls", "--json")
    (found,) = json.loads(out)["transfers"]
    assert (found["transfer_id"], found["direction"], found["stored_bytes"]) == (JOB, "in", 400)
    node.transfers = [fake.LOST]
    assert "FAILED NO_ROUTE" in tdn("channel", "ls")[1]
    assert tdn("channel", "cancel", "3f2a")[0] == 0
    assert node.requests[-1] == pb.CancelTransferRequest(transfer_id="3f2a")


@pytest.mark.parametrize("line", [transfer[0] for transfer in TRANSFERS])
def test_a_transfer_that_stops_early_is_no_success(line, node, tdn):
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
    monkeypatch.setenv("COLUMNS", "80")
    words = ["channel", "send", "bank-b.cn", "files", "march.zip"]
    code, seen = on_terminal(words)
    assert code == 0
    assert "sending" in seen
    assert "1000 B / 1000 B" in seen
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
    node.watched = [fake.job()]
    node.hang.set()
    line = [*COMMAND, "job", "run", "flow.toml", "--lang", lang]
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert node.hanging.wait(60)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out) == (130, b"")
    assert [word for word in words if word not in err.decode()] == []
    assert "Traceback" not in err.decode()
