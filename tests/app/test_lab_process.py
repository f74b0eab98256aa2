"""Processes of a lab: who they are, and how they end."""

import os
import signal
import socket
import sys

import pytest

from tdn_interop.app.lab import lab, lab_process
from tdn_interop.app.lab.lab import Lab, node_command
from tdn_interop.errors import TdnError
from tests.app.lab_world import processes

MARK = "/the/configuration"
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def stubborn(tmp_path):
    """A process that does not stop when it is asked to."""
    log = tmp_path / "log"
    os.mkfifo(log)
    output = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(output, True)
    pid = lab_process.spawn([sys.executable, "-c", STUBBORN, MARK], log)
    with os.fdopen(output) as lines:
        assert lines.readline() == "ready\n"
        yield pid
    assert not lab_process.runs(pid, MARK)


async def test_what_does_not_stop_is_killed(stubborn, monkeypatch):
    monkeypatch.setattr(lab_process, "STOP_S", 0.2)
    assert lab_process.runs(stubborn, MARK)
    await lab_process.end(stubborn, MARK, signal.SIGTERM)
    assert lab_process.runs(stubborn, MARK)
    await lab_process.end(stubborn, MARK, signal.SIGTERM, signal.SIGKILL)


async def test_a_process_with_other_arguments_is_none_of_ours(stubborn):
    for mark in ("/the/config", "/other", "", "ready"):
        assert not lab_process.runs(stubborn, mark or "/")
        await lab_process.end(stubborn, mark or "/", signal.SIGKILL)
    assert lab_process.runs(stubborn, MARK)
    await lab_process.end(stubborn, MARK, signal.SIGKILL)


async def test_no_process_is_not_an_error(tmp_path):
    pid = lab_process.spawn([sys.executable, "-c", "", MARK], tmp_path / "log")
    await lab_process.end(pid, MARK, signal.SIGKILL)
    for gone in (pid, None):
        assert not lab_process.runs(gone, MARK)
        await lab_process.end(gone, MARK, signal.SIGKILL)


CASES = {
    "a program that ends with words": ("print('first'); print('no such module'); raise SystemExit(1)", "no such module"),
    "a program that says nothing": ("raise SystemExit(1)", "it said nothing"),
    "a program that is killed": ("import os; os.kill(os.getpid(), 9)", "it said nothing"),
    "a program that never answers": ("print('busy', flush=True); import signal; signal.pause()", "busy"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
async def test_a_node_that_does_not_start_takes_the_others_with_it(tmp_path, monkeypatch, case):
    program, words = CASES[case]

    def command(node, config):
        if node == "shandong.cn":
            return [sys.executable, "-c", program, str(config)]
        return node_command(node, config)

    if case == "a program that never answers":
        monkeypatch.setattr(lab, "START_S", 3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with pytest.raises(TdnError, match=f"^NODE_DOWN: shandong.cn did not start: {words}$"):
        await Lab(tmp_path / "lab", command=command).up("mini")
    assert not (tmp_path / "lab").exists()
    assert processes(tmp_path) == {}
    assert list((tmp_path / "tmp").iterdir()) == []


async def test_others_are_told_the_advertised_address(tmp_path):
    """Nobody listens at the address that members are told, so the first of them cannot enrol."""
    told = []

    def advertised(address):
        told.append(address)
        return "127.0.0.1:9"

    with pytest.raises(TdnError, match=r"^UNREACHABLE: 127\.0\.0\.1:9"):
        await Lab(tmp_path / "lab", advertised=advertised).up("mini")
    assert len(set(told)) == 2  # where the top enrols and where it is linked to
    assert processes(tmp_path) == {}


def test_ports_that_are_taken_are_passed_over(monkeypatch):
    first = next(lab._free_addresses("seed"))
    assert next(lab._free_addresses("seed")) == first  # the same folder gets the same ports
    host, port = first.split(":")
    with socket.socket() as taken:
        taken.bind((host, int(port)))
        taken.listen()
        assert next(lab._free_addresses("seed")) != first
        monkeypatch.setattr(lab, "PORTS", range(int(port), int(port) + 1))
        with pytest.raises(TdnError, match=r"^CONFIG_INVALID: no free port"):
            next(lab._free_addresses("seed"))
