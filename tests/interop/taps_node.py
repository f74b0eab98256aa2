"""Runs a node as always, and records what it carries and what it holds: a curious hub, a party under a lens.

    python taps_node.py FOLDER CONFIG [NAME=VALUE]

Files in FOLDER: `link-N` is what came through the N-th stream of the front after TLS, one direction each;
`tunnel-ID-from-NODE` what that side put into a tunnel; NOTES has one JSON line for each opening of a
tunnel, secret of an algorithm machine, message that such a machine got, and message sent on a channel.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tdn_interop.algo.task import Received, TaskMachine
from tdn_interop.algo.wire import encode_message
from tdn_interop.app.cli import run
from tdn_interop.app.jobs import job_wire
from tdn_interop.app.jobs.driver import Driver, Place
from tdn_interop.app.post import post_wire
from tdn_interop.app.post.post import TOPIC
from tdn_interop.transport import records_wire
from tdn_interop.transport.channels import Channels
from tdn_interop.transport.pump import Pump, TlsStream
from tdn_interop.transport.records_wire import Opening
from tdn_interop.transport.relay import Tunnels
from tdn_interop.transport.tunnel import Leg

NOTES = "notes.jsonl"


class Recorder:
    """Files of one node."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._notes = (folder / NOTES).open("a", buffering=1)
        self._streams: dict[object, int] = {}

    def note(self, kind: str, **facts: object) -> None:
        self._notes.write(json.dumps({"kind": kind, **facts}) + "\n")

    def append(self, name: str, data: bytes | memoryview) -> None:
        with (self._folder / name).open("ab") as file:
            file.write(data)

    # -- what a hub sees

    def passed(self, direction: Pump | TlsStream, data: memoryview) -> None:
        number = self._streams.setdefault(direction, len(self._streams))
        self.append(f"link-{number}", data)

    def tunnel(self, opening: Opening, leg: Leg, onward: Any) -> tuple[Leg, Any]:
        self.note("opening", source=opening.source, destination=opening.destination)
        name = f"tunnel-{opening.tunnel_id.hex()}-from"
        forward = functools.partial(self.append, f"{name}-{opening.source}")
        backward = functools.partial(self.append, f"{name}-{opening.destination}")
        far = dataclasses.replace(onward, leg=_Overheard(onward.leg, backward))
        return _Overheard(leg, forward), far

    # -- what a party holds

    def began(self, driver: Driver, machine: TaskMachine, place: Place, *_rest: object) -> None:
        self.note("run", topic=place.topic, agreement=machine.task.agreement.hex())

    def kept(self, machine: TaskMachine, secret: bytes) -> None:
        self.note("secret", agreement=machine.task.agreement.hex(), value=secret.hex())

    def stepped(self, machine: TaskMachine, event: object) -> None:
        if isinstance(event, Received):
            data = encode_message(event.message).hex()
            self.note("received", agreement=machine.task.agreement.hex(), sender=event.sender, data=data)

    def sent(self, _channels: Channels, to: str, topic: str, data: bytes, *_rest: object) -> None:
        job, what = "", topic
        if topic == TOPIC:
            post = post_wire.decode(data)
            if isinstance(post, post_wire.WireReceipt):
                return
            job, message = job_wire.decode_message(to, post.body)
            what = type(message).__name__
        elif topic.startswith("task/"):
            _, job, what, _ = topic.split("/")
        self.note("sent", to=to, job=job, what=what, size=len(data))


class _Overheard:
    """A leg whose reader listens in."""

    def __init__(self, leg: Leg, hear: Callable[[bytes], None]) -> None:
        self._leg = leg
        self._hear = hear

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leg, name)

    async def read(self) -> bytes:
        message = await self._leg.read()
        if message:
            self._hear(records_wire.decode_carried(message))
        return message


def before(owner: type, name: str, look: Callable[..., None]) -> None:
    """Have `look` see the arguments of every call of a method."""
    plain = getattr(owner, name)

    @functools.wraps(plain)
    def watched(*args: Any, **kwargs: Any) -> Any:
        look(*args)
        return plain(*args, **kwargs)

    setattr(owner, name, watched)


def record(recorder: Recorder) -> None:
    """Put the recorder into the product."""
    before(TlsStream, "write", recorder.passed)  # clear text that leaves
    before(Pump, "_deliver", recorder.passed)  # and that has arrived
    before(Driver, "__init__", recorder.began)
    before(TaskMachine, "_secret", recorder.kept)
    before(TaskMachine, "step", recorder.stepped)
    before(Channels, "send", recorder.sent)
    carry = Tunnels._carry

    async def overheard(self: Tunnels, opening: Opening, leg: Leg, onward: Any, previous: str) -> Any:
        return await carry(self, opening, *recorder.tunnel(opening, leg, onward), previous)

    Tunnels._carry = overheard


if __name__ == "__main__":
    folder, config, *settings = sys.argv[1:]
    os.environ.update(setting.split("=", 1) for setting in settings)  # noqa: TID251  for the node, as a shell would
    record(Recorder(Path(folder)))
    sys.exit(run(["node", "run", "--json", "--config", config]))
