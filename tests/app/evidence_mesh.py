"""A mesh of logs in memory and the papers of a job in it, for the tests of evidence."""

import hashlib
import os
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tdn_interop import ids
from tdn_interop._pb.tdn.app.v1 import job_pb2
from tdn_interop.app.evidence import bundle, wire
from tdn_interop.app.evidence.merkle import Tree, leaf_hash
from tdn_interop.app.evidence.statements import (
    VERDICT_KIND,
    Attestation,
    Event,
    Inclusion,
    Outcome,
    TreeHead,
    commitment,
    digest,
)
from tdn_interop.identity import CONSENT, EVENT, NODE_RECORD, STATEMENT, TREE_HEAD, VERDICT, Identity
from tdn_interop.transport.records_wire import NodeRecord, encode_record, encode_signed, signed_to_pb

NOW = 1_700_000_000_000
JOB = "0123456789abcdef" * 2
AGREEMENT = hashlib.sha256(b"agreement").digest()


def identity(node, seed=b""):
    return Identity(node, Ed25519PrivateKey.from_private_bytes(hashlib.sha256(node.encode() + seed).digest()))


class Node:
    """A node with a log that may start with `size` leaves nobody will ask for."""

    def __init__(self, name, size=0):
        self.identity = identity(name)
        self.name, self.tree, self.clock = name, Tree(), NOW
        if size:  # roots and later proofs are made from these nodes, whatever lies below them
            self.tree._levels = [bytearray(os.urandom(32 * (size >> k))) for k in range(size.bit_length())]

    def head(self):
        self.clock += 7
        size = self.tree.size
        head = TreeHead(self.name, size, self.tree.root(size), self.clock)
        return self.identity.sign(TREE_HEAD, wire.encode_tree_head(head))

    def add(self, leaf, later=0):
        """Append `leaf` and `later` others; the place of `leaf` in the log as it is then."""
        index = self.tree.size
        self.tree.append(leaf_hash(encode_signed(leaf)))
        for _ in range(later):
            self.tree.append(os.urandom(32))
        return Inclusion(index, self.tree.inclusion(index, self.tree.size), self.head())


@dataclass
class Mesh:
    """Nodes by name; parents exist, too."""

    nodes: dict[str, Node]
    later: int = 0
    records: dict = field(default_factory=dict)

    @classmethod
    def of(cls, *names, child_size=0, hub_size=0, later=0):
        every = {n for name in names for n in above(name)}
        sizes = {n: child_size if n in names else hub_size for n in every}
        mesh = cls({n: Node(n, sizes[n]) for n in sorted(every)}, later)
        top = names[0].rpartition(".")[2]
        for n in sorted(every - {top}):
            record = NodeRecord(n, "child" if n in names else "hub", mesh.key(n), ids.parent(n), NOW)
            mesh.records[n] = mesh.nodes[top].identity.sign(NODE_RECORD, encode_record(record))
        return mesh

    def key(self, name):
        return self.nodes[name].identity.public_key

    def sign(self, name, context, message):
        data = message if isinstance(message, bytes) else message.SerializeToString(deterministic=True)
        return self.nodes[name].identity.sign(context, data)

    def attest(self, name, verdict, **changes):
        facts = {
            "kind": VERDICT_KIND,
            "subject": JOB,
            "at_ms": NOW,
            "facts": {},
            "statement_sha256": digest(verdict),
        }
        event = self.sign(name, EVENT, wire.encode_event(Event(name, **(facts | changes))))
        leaf, chain = event, []
        for node in above(name):
            chain.append(self.nodes[node].add(leaf, self.later))
            leaf = chain[-1].head
        return Attestation(event, tuple(chain), tuple(self.records[n] for n in above(name)[:-1]))


def above(name):
    """`a.b.cn` -> a.b.cn, b.cn, cn."""
    labels = name.split(".")
    return [".".join(labels[n:]) for n in range(len(labels))]


@dataclass
class Papers:
    """What a coordinator holds at the end of a job; change a field before `bundle` to make a bad one."""

    mesh: Mesh
    verdict: object
    consents: list
    attestations: list

    def bundle(self):
        return bundle.build(self.verdict, self.consents, self.attestations, self.mesh.records.values())

    @property
    def top_key(self):
        return self.mesh.key(self.attestations[0].chain[-1].head.signer)


def statement(mesh, name, outcome=Outcome.SUCCEEDED, coordinator=None, **changes):
    fields = {
        "coordinator": coordinator or name,
        "job_id": JOB, "party": name, "outcome": outcome.value, "agreement_sha256": AGREEMENT, "epoch": 1,
        "ended_at_ms": NOW, "result_commitment": commitment(b"s" * 16, hashlib.sha256(name.encode()).digest()),
    }  # fmt: skip
    return mesh.sign(name, STATEMENT, job_pb2.Statement(**(fields | changes)))


def verdict(mesh, statements, outcome=Outcome.SUCCEEDED, missing=(), by=None, **changes):
    fields = {
        "job_id": JOB, "outcome": outcome.value, "agreement_sha256": AGREEMENT,
        "statements": [signed_to_pb(s) for s in statements], "missing": missing,
    }  # fmt: skip
    message = job_pb2.Verdict(**(fields | changes))
    if outcome is not Outcome.SUCCEEDED:
        message.failure.reason = "DEADLINE"
    return mesh.sign(by or statements[0].signer, VERDICT, message)


def consent(mesh, name, coordinator, parties, **changes):
    fields = {
        "job_id": JOB, "agreement_sha256": AGREEMENT, "coordinator": coordinator, "parties": sorted(parties),
    }  # fmt: skip
    return mesh.sign(name, CONSENT, job_pb2.Consent(**(fields | changes)))


def papers(names, mesh=None, **sizes):
    """The papers of a job that succeeded, coordinated by the first of `names`."""
    names = sorted(names)
    mesh = mesh or Mesh.of(*names, **sizes)
    end = verdict(mesh, [statement(mesh, n, coordinator=names[0]) for n in names])
    return Papers(
        mesh, end, [consent(mesh, n, names[0], names) for n in names], [mesh.attest(n, end) for n in names]
    )
