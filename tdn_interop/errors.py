"""Refusals: one exception type per place of fault, and the guard every refusal passes.

A refusal names a reason of the one table (`reasons.py`) and the requirement of the catalogue it
enforces. Messages and metadata hold names and sizes, never data, keys or secrets.
"""

from __future__ import annotations

import functools
import re
from typing import NoReturn

from tdn_interop.reasons import Reason

__all__ = [
    "ConfigError", "Guard", "LocalProtocolError", "NegotiationFailed", "PeerProtocolError", "ProtocolError",
    "Reason", "Refused", "TdnError", "Unavailable", "guard", "switch_off",
]  # fmt: skip


class TdnError(Exception):
    """A refusal or failure with a reason that machines can read and words that people can use."""

    def __init__(self, reason: Reason, message: str, requirement: str = "", **metadata: str | int) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.requirement = requirement
        self.metadata = {key: str(value) for key, value in metadata.items()}

    @property
    def exit_code(self) -> int:
        """Exit code of a command that ends with this error."""
        return self.reason.value.exit_code

    def __str__(self) -> str:
        return f"{self.reason.name}: {self.message}"


class ConfigError(TdnError):
    """Our operator's input or configuration, before anything ran."""


class ProtocolError(TdnError):
    """A rule of a protocol was broken; the two subclasses say by whom."""


class LocalProtocolError(ProtocolError):
    """Our side asked for something that is not allowed in this state."""


class PeerProtocolError(ProtocolError):
    """The peer broke a rule."""


class NegotiationFailed(TdnError):
    """Nobody's fault: the parties have nothing in common."""


class Refused(TdnError):
    """Authentication, authorisation or policy says no."""


class Unavailable(TdnError):
    """Unreachable, out of time, or drained."""


_REQUIREMENT = re.compile(r"TDN-[TAFX]-[A-Z]{2,3}-\d\d\Z")
_off: frozenset[str] = frozenset()


class Guard:
    """The gate of one requirement: every refusal for it passes here."""

    def __init__(self, requirement: str) -> None:
        self.requirement = requirement

    def check(
        self,
        ok: object,
        reason: Reason,
        message: str,
        kind: type[TdnError] = PeerProtocolError,
        **metadata: str | int,
    ) -> None:
        """Raise `kind(reason, message)` unless `ok`; nothing happens while the guard is switched off."""
        if not ok and self.requirement not in _off:
            raise kind(reason, message, self.requirement, **metadata)

    def refuse(
        self, reason: Reason, message: str, kind: type[TdnError] = PeerProtocolError, **metadata: str | int
    ) -> NoReturn:
        """Raise `kind(reason, message)`: for places with no way to go on, where switching off means nothing."""
        raise kind(reason, message, self.requirement, **metadata)


@functools.cache
def guard(requirement: str) -> Guard:
    """The guard of `requirement`, an id of the catalogue such as `TDN-A-PSI-06`."""
    if not _REQUIREMENT.match(requirement):
        raise ValueError(f"not a requirement id: {requirement}")
    return Guard(requirement)


def switch_off(requirements: frozenset[str]) -> None:
    """Switch guards off, for the proof that the test suite notices. No configuration and no peer reaches this."""
    global _off  # noqa: PLW0603  one process-wide switch, set only by the mutation runner
    _off = requirements
