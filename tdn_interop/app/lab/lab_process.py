"""The processes of a lab: started in a session of their own, found again by number, never mistaken for others.

Linux: a pidfd stays with its process, so that between looking and signalling the number cannot come to mean
another one (pidfd_open(2)); whose process it is stands on its command line (proc_pid_cmdline(5)).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

# How long a process may take to stop in good order, and after SIGKILL to be gone.
STOP_S = 10.0


def spawn(command: list[str], log: Path) -> int:
    """Start `command` with its output at the end of `log`; its pid. It outlives the caller."""
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, appending, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    environment = os.environ  # noqa: TID251  handed on, not read
    pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)
    ended = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while not any(_command_line(pid)) and os.waitid(os.P_PID, pid, ended) is None:
        time.sleep(0.001)  # the kernel shows the command line a moment after it has started it
    return pid


def runs(pid: int | None, argument: str) -> bool:
    """True when `pid` is a process with `argument` on its command line."""
    with _handle(pid, argument) as process:
        return process is not None


async def end(pid: int | None, argument: str, *signals: signal.Signals) -> None:
    """Send `signals`, one after the other with STOP_S between, until the process is gone."""
    with _handle(pid, argument) as process:
        if process is None:
            return
        for number in signals:
            with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                signal.pidfd_send_signal(process, number)
            if await _gone(process):
                return


@contextlib.contextmanager
def _handle(pid: int | None, argument: str) -> Iterator[int | None]:
    """A pidfd; None when there is no such process, or it is somebody else's."""
    try:
        process = os.pidfd_open(pid) if pid else None
    except ProcessLookupError:
        process = None
    if process is None:
        yield None
        return
    try:
        _reap(process)
        yield process if os.fsencode(argument) in _command_line(pid) else None
    finally:
        os.close(process)


async def _gone(process: int) -> bool:
    """True when the process ends within STOP_S: its pidfd then becomes readable."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(STOP_S):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(process)
    _reap(process)
    return True


def _reap(process: int) -> None:
    with contextlib.suppress(ChildProcessError):  # another process is its parent
        os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOHANG)


def _command_line(pid: int | None) -> list[bytes]:
    """Arguments of a process; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return []
