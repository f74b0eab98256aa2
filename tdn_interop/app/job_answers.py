"""What this node says about jobs that it does not run, without waiting for it."""

from __future__ import annotations

from collections import Counter

import tenacity

from tdn_interop.app import job_protocol as words
from tdn_interop.app import job_wire
from tdn_interop.app.mesh import Mesh
from tdn_interop.errors import TdnError

TOPIC = "job"
ANSWER_S = 30.0
INSIST_S = 300.0
# Answers on their way to one peer; what it asks beyond that goes unanswered.
MAX_ANSWERS = 64


class Answers:
    """Sends beside everything else; what cannot be sent is counted and logged."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._on_their_way: Counter[str] = Counter()

    def give(self, peer: str, job_id: str, message: words.Message) -> None:
        """Answer once."""
        if self._on_their_way[peer] < MAX_ANSWERS:
            self._on_their_way[peer] += 1
            self._mesh.spawn(self._give(peer, job_id, message))

    async def _give(self, peer: str, job_id: str, message: words.Message) -> None:
        try:
            await self._mesh.channels.send(peer, TOPIC, job_wire.encode_message(job_id, message), ANSWER_S)
        except TdnError as error:
            self._mesh.refused(error)
        finally:
            self._on_their_way[peer] -= 1

    async def insist(self, peer: str, job_id: str, message: words.Message) -> None:
        """Send until it has arrived: a peer may be hard to reach when this node has just started."""
        try:
            await self._arrive(peer, job_wire.encode_message(job_id, message))
        except TdnError as error:
            self._mesh.refused(error)

    @tenacity.retry(
        wait=tenacity.wait_exponential(max=10), stop=tenacity.stop_after_delay(INSIST_S), reraise=True,
        retry=tenacity.retry_if_exception_type(TdnError),
    )  # fmt: skip
    async def _arrive(self, peer: str, data: bytes) -> None:
        await self._mesh.channels.send(peer, TOPIC, data, ANSWER_S)
        await self._mesh.channels.flush(peer, TOPIC, ANSWER_S)
