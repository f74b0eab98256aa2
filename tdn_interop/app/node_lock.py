"""One process per folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from typing import TextIO

from tdn_interop.config import NodeConfig
from tdn_interop.errors import ConfigError, Reason, guard


@contextlib.contextmanager
def locked(config: NodeConfig) -> Iterator[TextIO]:
    """Nobody else runs this node within the block; a killed process leaves no lock behind. Errors: CONFIG_INVALID."""
    with config.file("node.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            guard("TDN-X-LAB-05").refuse(
                Reason.CONFIG_INVALID, f"another process runs the node in {config.dir}", ConfigError
            )
        yield file
