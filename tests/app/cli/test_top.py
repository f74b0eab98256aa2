"""`tdn top` and `tdn node drain`: what a program, a pipe and a terminal get."""

import json
import os
import pty
import select
import subprocess
import time

import pytest

from tdn_interop.app.cli import top_view
from tdn_interop.app.cli.output import Output
from tdn_interop.app.cli.words import Words
from tests.app.cli.fake import COMMAND

NODE = {
    "node_id": "cn", "role": "top", "runs": True, "at_ms": 10_000, "uptime_s": 9.0, "draining": False,
    "certificate_expires_at_ms": 86_410_000, "links": [], "tunnels": [], "sessions": [], "transfers": [], "jobs": [],
    "mailboxes": [], "refusals": [],
}  # fmt: skip
TUNNEL = {
    "id": "aa", "source": "a.cn", "destination": "b.cn", "forward_bytes": 3000, "backward_bytes": 100, "started_at_ms": 1,
}  # fmt: skip


def shown(now, before=(), limit=None, lang="en"):
    """The lines of a view in a pipe."""
    output = Output(Words(lang), as_json=False)
    with output._out.capture() as text:
        output._out.print(top_view.view(output, now, {one["node_id"]: one for one in before}, limit))
    return [" ".join(line.split()) for line in text.get().splitlines()]


def test_a_program_gets_everything(node, tdn):
    code, out, err = tdn("top", "--json")
    (one,) = json.loads(out)["nodes"]
    assert (code, err) == (0, "")
    assert one["runs"] is True
    assert (one["node_id"], one["role"], one["draining"]) == ("bank-a.cn", "hub", False)
    assert one["tunnels"][0]["forward_bytes"] == 3 << 20
    assert one["refusals"] == [{"reason": "RATE_LIMITED", "count": 17}]


def test_a_pipe_gets_tables_once(node, tdn):
    code, out, _ = tdn("top", "--lang", "zh")
    assert code == 0
    assert "bank-a.cn hub 已运行 1:02:05 证书剩余 10:00:00" in " ".join(out.split())
    assert "隧道 (1)" in out
    code, out, _ = tdn("top")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    for line in (
        "bank-a.cn hub up 1:02:05 certificate ends in 10:00:00",
        "cn up yes 0:01:00",
        "x.bank-a.cn down no -",
        "3f2a3f2a out bank-b.cn files running 25% -",
        "3f2a0000 bank-b.cn RUNNING RUNNING 50%",
        "x.bank-a.cn bank-b.cn 3.0 MiB 1.5 MiB/s 4.0 KiB 2.0 KiB/s",
        "bank-b.cn open 3 1.0 MiB 3.0 MiB",
        "away.bank-a.cn 2 2.0 KiB 0:01:00",
        "RATE_LIMITED 17",
    ):
        assert line in lines, line


def test_a_node_that_is_down(folder, tdn):
    code, _, err = tdn("top", "--json")
    assert (code, json.loads(err)["error"]["reason"]) == (4, "NODE_DOWN")


def test_rates_come_from_two_looks():
    before = {**NODE, "at_ms": 8_000, "tunnels": [TUNNEL | {"forward_bytes": 1000}]}
    lines = shown([{**NODE, "tunnels": [TUNNEL, TUNNEL | {"id": "bb", "started_at_ms": 9_000}]}], [before])
    assert (
        "a.cn b.cn 2.9 KiB 2.9 KiB/s 100 B 100 B/s" in lines
    )  # opened a second ago: the busier one is first
    assert "a.cn b.cn 2.9 KiB 1000 B/s 100 B -" in lines
    assert lines.index("a.cn b.cn 2.9 KiB 1000 B/s 100 B -") == len(lines) - 1


def test_what_does_not_fit_is_counted():
    tunnels = [TUNNEL | {"id": str(number)} for number in range(9)]
    lines = shown([{**NODE, "tunnels": tunnels}], limit=4)
    assert lines[-1] == "5 more"
    assert sum(line.startswith("a.cn b.cn") for line in lines) == 4
    assert "5 more" not in shown([{**NODE, "tunnels": tunnels}])


def test_many_nodes_in_one_table_and_whose_row_it_is():
    link = {"neighbour": "cn", "direction": "up", "linked": False, "since_at_ms": 4_000}
    hub = {**NODE, "node_id": "b.cn", "role": "hub", "links": [link], "tunnels": [TUNNEL], "draining": True}
    down = {"node_id": "c.cn", "role": "hub", "runs": False}
    lines = shown([NODE, hub, down])
    assert lines[0] == "Nodes (3)"
    assert "cn top yes 0/0 0 - 0 0 0 0 1 day, 0:00:00" in lines
    assert "b.cn hub yes 0/1 1 310 B/s 0 0 0 0 1 day, 0:00:00" in lines
    assert "c.cn hub no - - - - - - - -" in lines
    assert "b.cn cn up no 6.0 s" in lines
    assert "b.cn a.cn b.cn 2.9 KiB 300 B/s 100 B 10 B/s" in lines


def test_the_table_of_nodes_fits_a_terminal_of_80_columns():
    output = Output(Words("en"), as_json=False)
    output._out.width = 80
    names = ["registry.guangdong.cn", "exchange.central.hk"]
    now = [{**NODE, "node_id": name, "tunnels": [TUNNEL]} for name in names]
    with output._out.capture() as text:
        output._out.print(top_view.view(output, now, {}, None))
    head, first, second, *_ = text.get().splitlines()[1:]
    assert [len(head) <= 80, first.split()[0], second.split()[0]] == [True, *names]


def test_names_of_others_cannot_steer_the_terminal():
    lines = shown([{**NODE, "sessions": [{"peer": "a\x1b[2Jb", "state": "open", "topics": 1, "queued_bytes": 0, "credit_bytes": 0}]}])  # fmt: skip
    assert "a\\x1b[2Jb open 1 0 B 0 B" in lines


def test_on_a_terminal_it_stays_until_q(node, folder):
    outer, inner = pty.openpty()
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm", "COLUMNS": "80", "LINES": "40"}  # noqa: TID251
    with subprocess.Popen(
        [*COMMAND, "top"], cwd=folder, stdin=inner, stdout=inner, stderr=inner, env=environment
    ) as top:
        os.close(inner)
        seen = read_until(outer, b"RATE_LIMITED")
        assert b"\x1b[?1049h" in seen  # the other screen
        read_until(outer, b"RATE_LIMITED")  # it looks again
        assert top.poll() is None
        os.write(outer, b"q")
        read_until(outer, b"\x1b[?1049l")
        assert top.wait(20) == 0
    os.close(outer)
    assert len(node.requests) >= 2


def read_until(terminal, words, timeout_s=30):
    seen, ends = b"", time.monotonic() + timeout_s
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], ends - time.monotonic())
        assert ready, seen
        seen += os.read(terminal, 1 << 16)
    return seen


@pytest.mark.parametrize(("words", "wait_s"), [((), 60), (("--timeout", "10m"), 600)])
def test_drain(node, tdn, words, wait_s):
    code, out, _ = tdn("node", "drain", *words, "--json")
    assert (code, json.loads(out)["stops"]) == (0, True)
    assert node.requests[-1].timeout_s == wait_s


def test_a_drain_that_is_taken_back(node, tdn):
    node.remaining = [(1, 9.5, False)]
    code, _, err = tdn("node", "drain")
    assert (code, err.strip()) == (1, "The node takes new things again.")
    assert tdn("node", "undrain")[0] == 0
