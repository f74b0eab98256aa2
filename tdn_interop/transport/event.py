"""What a session is fed and what it wants done. The frames of the peer are events too."""

from __future__ import annotations

from dataclasses import dataclass

from tdn_interop.errors import TdnError
from tdn_interop.transport.frame import Frame


@dataclass(frozen=True, slots=True)
class LocalEvent:
    """Something of our own side."""


@dataclass(frozen=True, slots=True)
class Connected(LocalEvent):
    """Our dial has succeeded: a fresh connection is there."""


@dataclass(frozen=True, slots=True)
class Disconnected(LocalEvent):
    """The connection is gone."""


@dataclass(frozen=True, slots=True)
class Queued(LocalEvent):
    """Our consumer sends a message; `fits` must hold."""

    topic: str
    message: bytes


@dataclass(frozen=True, slots=True)
class Consumed(LocalEvent):
    """Our consumer has taken a delivered message that used `cost` of credit."""

    topic: str
    cost: int


@dataclass(frozen=True, slots=True)
class Left(LocalEvent):
    """Our side wants an orderly end."""


@dataclass(frozen=True, slots=True)
class Aborted(LocalEvent):
    """Our side ends the session now, because of `error`."""

    error: TdnError


@dataclass(frozen=True, slots=True)
class Ticked(LocalEvent):
    """Time has passed; wanted at `wake_at`, harmless at any time."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """Effect: hand the message to the consumer's queue. `cost` comes back in `Consumed`."""

    topic: str
    message: bytes
    cost: int


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Effect: drop the connection. The session is DETACHED already."""


Effect = Deliver | Disconnect
Event = LocalEvent | Frame
