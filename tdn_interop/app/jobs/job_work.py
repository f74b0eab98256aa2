"""What a party does for a job: decide, check the agreement, load, compute, deliver. Errors: TdnError."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tdn_interop import identity
from tdn_interop.algo import catalogue
from tdn_interop.algo.handshake import Proposal
from tdn_interop.algo.kernel import best_kernel
from tdn_interop.algo.suites import SUITES
from tdn_interop.algo.task import Task as AlgoTask
from tdn_interop.app.data import results
from tdn_interop.app.data.keys import KeySet, load_keys
from tdn_interop.app.data.results import Written
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.statements import SALT_BYTES, commitment
from tdn_interop.app.jobs import agreement as agreements
from tdn_interop.app.jobs import approval, flow, job_wire
from tdn_interop.app.jobs.approval import Approve
from tdn_interop.app.jobs.driver import Driver, Place, Result
from tdn_interop.app.jobs.flow import FlowSpec
from tdn_interop.app.jobs.spool import Spool
from tdn_interop.app.jobs.terms import Agreement, InputOffer, Offer
from tdn_interop.app.mesh import Mesh
from tdn_interop.app.resources import Resources, resource_commitment
from tdn_interop.app.store.resources import ResourceRow
from tdn_interop.config import NodeConfig
from tdn_interop.errors import ConfigError, NegotiationFailed, Reason, Refused, TdnError, guard
from tdn_interop.identity import Signed
from tdn_interop.transport.trust import now_ms

# The portable kernel needs about 40 microseconds per item and ladder; two threads keep both cores busy.
COMPUTE_THREADS = 2
RESULT_FACTS = {"result_rows", "result_file", "result_sha256", "result_salt"}
# A run that was interrupted waits so long before it is tried again, in seconds: doubled each time.
PAUSE_S, LONGEST_PAUSE_S = 0.1, 10.0


@dataclass
class Part:
    """The part of this node in one job, as it grows."""

    job_id: str
    flow: FlowSpec
    coordinator: str
    inputs: list[ResourceRow] = field(default_factory=list)
    problem: TdnError | None = None  # why it cannot be approved, while a human decides
    offer: Signed | None = None
    agreement: Agreement | None = None
    agreement_digest: bytes = b""
    keys: KeySet | None = None
    written: Written | None = None  # the result: in the spool, then also in its place
    commitment: bytes = b""
    hops: int = 0
    facts: dict[str, str] = field(default_factory=dict)


class Work:
    """The work of a party, for every job of this node."""

    def __init__(self, mesh: Mesh, resources: Resources) -> None:
        self._mesh = mesh
        self._resources = resources
        self._config: NodeConfig = mesh.config
        self.spool = Spool(mesh.config.file("spool"))
        self._pool = ThreadPoolExecutor(COMPUTE_THREADS, thread_name_prefix="compute")

    def close(self) -> None:
        """Wait for computations that still run."""
        self._pool.shutdown(cancel_futures=True)

    async def decide(self, part: Part) -> str:
        """`rule` when this node approves by itself, "" when a human must decide. Errors: why it refuses.

        While a human decides, what stands against it is the `problem` of the part and no error: strangers
        must not learn what there is here before anybody has looked at what they want.
        """
        self._check_suites(flow.algorithm_id(flow.only_task(part.flow)))
        decision = approval.decide(self._config.approval, part.flow, self._mesh.me, part.coordinator)
        by_rule = isinstance(decision, Approve)
        try:
            part.inputs = [await self._bound(entry) for entry in self._own_inputs(part)]
            if self._receives(part):
                self._output(part)
        except TdnError as error:
            if by_rule:
                raise
            part.problem = error
        return "rule" if by_rule else ""

    def approve(self, part: Part, by: str) -> Signed:
        """The signed offer of this node; the same one when asked again."""
        if part.offer:
            return part.offer
        inputs = tuple(InputOffer(row.id, resource_commitment(row)) for row in part.inputs)
        digest = flow.flow_sha256(part.flow)
        offer = Offer(part.job_id, digest, self._proposal(), inputs, now_ms(), by)
        part.offer = self._mesh.standing.key.sign(identity.OFFER, job_wire.encode_offer(offer))
        return part.offer

    def check_agreement(self, part: Part, data: bytes, records: tuple[Signed, ...]) -> bytes:
        """The digest of the agreement, if it is the right one. Errors: TRANSCRIPT_MISMATCH and others."""
        assert part.offer is not None  # noqa: S101  the machine admits only what was approved
        part.agreement = agreements.confirm(
            data, records, part.job_id, part.flow, part.offer, self._mesh.record
        )
        part.agreement_digest = agreements.digest(data)
        return part.agreement_digest

    async def load(self, part: Part) -> None:
        """Read this node's keys, once. Errors: DIGEST_MISMATCH, EMPTY_SET, INPUT_INVALID, INVALID_ITEM, TOO_LARGE."""
        if part.keys:
            return
        if part.offer and not part.inputs:  # the offer of an earlier process: the very versions that it binds
            bound = job_wire.decode_offer(part.offer.statement).inputs
            part.inputs = [await self._resources.find(each.resource) for each in bound]
        for entry, row in zip(self._own_inputs(part), part.inputs, strict=True):
            form = CsvFormat(row.encoding, row.delimiter)
            normalisation = flow.only_task(part.flow).normalisation
            keys = await asyncio.to_thread(
                load_keys, Path(row.path), form, entry.keys, normalisation, row.sha256
            )
            count, limit = len(keys.items), self._config.max_items
            guard("TDN-A-PSI-13").check(
                count <= limit, Reason.TOO_LARGE,
                f"{row.id} has {count} distinct keys, {self._mesh.me} takes part with at most {limit} (max_items)",
                ConfigError,
            )  # fmt: skip
            part.keys = keys
            part.facts |= {
                "rows": str(keys.rows), "distinct_keys": str(len(keys.items)),
                "duplicate_rows": str(keys.duplicates), "empty_rows": str(keys.empties),
            }  # fmt: skip

    async def run(self, part: Part, epoch: int, on_progress: Callable[[int], None]) -> None:
        """Run this node's machine against the others; the result is in the spool then.

        Errors: Interruption; those of the machine and the peers; DIGEST_MISMATCH when the result is not that of
        an epoch before.
        """
        assert part.agreement is not None  # noqa: S101  the machine starts only what was agreed
        await self.load(part)
        task = flow.only_task(part.flow)
        roles = flow.roles(task)
        role = roles[self._mesh.me]
        kernel, _ = best_kernel(SUITES[part.agreement.choice.suite])
        bound = AlgoTask(part.agreement_digest, epoch, kernel, os.urandom, self._config.max_items)
        receivers = frozenset(roles[receiver] for receiver in task.receivers)
        items = part.keys.items if part.keys else []
        machine = catalogue.algorithm(part.agreement.choice.algorithm).machine(role, bound, items, receivers)
        others = {name: node for node, name in roles.items() if node != self._mesh.me}
        self._mesh.channels.discard(topic(part.job_id, task.name, epoch - 1))
        place = Place(topic(part.job_id, task.name, epoch), others, epoch)
        result = await Driver(machine, place, self._mesh.channels, self._pool, on_progress).run()
        part.hops = max((len(self._mesh.peers.paths.get(node, ())) for node in others.values()), default=0)
        part.facts |= {name: str(count) for name, count in result.facts.items()}
        if self._receives(part):
            await self._keep(part, result)

    async def deliver(self, part: Part) -> None:
        """Put the result in its place, if this node receives one; again is no matter. Errors: OUTPUT_EXISTS and others."""
        if not self._receives(part):
            return
        if part.written is None:  # an earlier process has computed it
            rows = int(part.facts["result_rows"])
            part.written = await asyncio.to_thread(self.spool.found, part.job_id, rows)
        whole = part.written and part.written.sha256 == part.facts["result_sha256"]
        told = "the computed result is not in the spool any more"
        guard("TDN-F-RCV-01").check(whole, Reason.DIGEST_MISMATCH, told, Refused)
        part.written = await _finished(self.spool.deliver, part.job_id, part.written, self._target(part))
        part.facts |= {"result_file": str(part.written.path)}

    def stop(self, part: Part) -> None:
        """Forget the result of a run that is over, but not which one it was."""
        self.spool.drop(part.job_id)
        part.written = None

    def recall(self, part: Part, facts: Mapping[str, str]) -> None:
        """Know again what an earlier process has computed and delivered, from the facts on record."""
        part.facts = dict(facts)
        if salt := facts.get("result_salt"):
            part.commitment = commitment(bytes.fromhex(salt), bytes.fromhex(facts["result_sha256"]))

    def discard(self, part: Part) -> None:
        """Remove what was put out and forget the data: the part has stopped, and has not stated success."""
        if part.offer and self._receives(part):
            self.spool.withdraw(part.job_id, self._target(part))
            self.forget(part)
        part.facts = {name: fact for name, fact in part.facts.items() if name not in RESULT_FACTS}
        part.keys, part.written, part.commitment = None, None, b""

    def forget(self, part: Part) -> None:
        """Keep no copy of a result that is in its place."""
        if part.offer and self._receives(part):
            self.spool.drop(part.job_id, self._target(part))

    async def _keep(self, part: Part, result: Result) -> None:
        guard("TDN-A-SS-09").check(
            result.output is not None, Reason.INTERNAL, "the run gave no result", Refused
        )
        part.written = await _finished(self._write, part, result)
        known = part.facts.get("result_sha256", part.written.sha256)
        guard("TDN-F-RCV-01").check(
            part.written.sha256 == known, Reason.DIGEST_MISMATCH,
            "this epoch has another result than one before", Refused,
        )  # fmt: skip
        salt = bytes.fromhex(part.facts.get("result_salt", "")) or secrets.token_bytes(SALT_BYTES)
        part.commitment = commitment(salt, bytes.fromhex(known))
        rows = str(part.written.rows)
        part.facts |= {"result_rows": rows, "result_sha256": known, "result_salt": salt.hex()}

    def _write(self, part: Part, result: Result) -> Written:
        task, matched = flow.only_task(part.flow), result.output or ()
        if keys := part.keys:
            row = part.inputs[0]
            positions = [m for m in matched if isinstance(m, int)]
            form, source = CsvFormat(row.encoding, row.delimiter), Path(row.path)
            return self.spool.put(
                part.job_id,
                lambda path: results.write_rows(path, source, form, row.sha256, keys, positions),
            )
        items = [m for m in matched if isinstance(m, bytes)]
        columns = task.inputs[0].keys
        return self.spool.put(part.job_id, lambda path: results.write_keys(path, columns, items))

    def _receives(self, part: Part) -> bool:
        return self._mesh.me in flow.only_task(part.flow).receivers

    def _target(self, part: Part) -> Path:
        own = part.coordinator == self._mesh.me
        return results.locate(self._config.results, self._named(part), own=own)

    def _named(self, part: Part) -> str:
        return flow.only_task(part.flow).output.path or f"{part.job_id}.csv"

    def _output(self, part: Part) -> Path:
        return results.place(self._config.results, self._named(part), own=part.coordinator == self._mesh.me)

    def _own_inputs(self, part: Part) -> list[flow.Input]:
        return [entry for entry in flow.only_task(part.flow).inputs if entry.party == self._mesh.me]

    async def _bound(self, entry: flow.Input) -> ResourceRow:
        row = await self._resources.find(entry.resource)
        missing = [key for key in entry.keys if key not in row.columns]
        # One reason for both: whoever may not use a column need not know that it is there.
        guard("TDN-F-RES-05").check(
            not missing, Reason.RESOURCE_UNKNOWN, f"{row.id} has no column {', '.join(missing)}", ConfigError
        )
        closed = [key for key in entry.keys if key not in row.keys]
        guard("TDN-F-CTR-02").check(
            not closed, Reason.RESOURCE_UNKNOWN, f"{row.id} does not offer {', '.join(closed)} as a key",
            ConfigError,
        )  # fmt: skip
        return row

    def _check_suites(self, algorithm: str) -> None:
        served = [a for a in self._proposal().algorithms if a.algorithm == algorithm and a.suites]
        guard("TDN-A-NEG-01").check(
            served, Reason.UNSUPPORTED_PARAMS,
            f"{self._mesh.me} serves no suite of {algorithm}; its configuration allows: "
            f"{', '.join(self._config.suites or ()) or 'none'}",
            NegotiationFailed,
        )  # fmt: skip

    def _proposal(self) -> Proposal:
        """Everything this product has, less what the configuration takes away."""
        full = catalogue.offer(self._mesh.me)
        if self._config.suites is None:
            return full
        allowed = self._config.suites
        served = (replace(a, suites=tuple(s for s in allowed if s in a.suites)) for a in full.algorithms)
        return replace(full, algorithms=tuple(served))


async def _finished(work: Callable[..., Written], *arguments: object) -> Written:
    """`work` in a thread; when the caller is cancelled it ends before we go on, because a thread cannot be stopped."""
    working = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        await asyncio.gather(working, return_exceptions=True)
        raise


def pause_s(epoch: int) -> float:
    """How long to wait after the interruption of this epoch."""
    return min(PAUSE_S * (1 << (epoch - 1)), LONGEST_PAUSE_S)


def topic(job_id: str, task: str, epoch: int) -> str:
    """The channel topic of a task's run."""
    return f"task/{job_id}/{task}/{epoch}"
