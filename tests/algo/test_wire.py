import dataclasses

import pytest

from tdn_interop._pb.tdn.algo.v1 import handshake_pb2, psi_pb2
from tdn_interop.algo.handshake import AlgorithmProposal, Choice, Proposal
from tdn_interop.algo.message import (
    MAX_MESSAGE_BYTES,
    MAX_ROWS,
    KeyBody,
    PointBatch,
    SealedBatch,
    TagBatch,
    TaskMessage,
)
from tdn_interop.algo.wire import (
    MAX_HANDSHAKE_BYTES,
    decode_choice,
    decode_message,
    decode_proposal,
    encode_choice,
    encode_message,
    encode_proposal,
)
from tdn_interop.errors import PeerProtocolError, Reason

MESSAGE = TaskMessage(bytes(32), 1, "masked", 0, True, PointBatch(2, bytes(64)))
PROPOSAL = Proposal(
    "bank-a.cn", (AlgorithmProposal("psi.ecdh/1", ("x25519-sha256-ell2",), ("key-bytes/1",)),)
)
CHOICE = Choice("psi.ecdh/1", "x25519-sha256-ell2", "key-bytes/1")


def refused(decode, data: bytes) -> tuple[Reason, str]:
    with pytest.raises(PeerProtocolError) as caught:
        decode(data)
    return caught.value.reason, caught.value.metadata.get("field", "")


def test_the_valid_twin_of_every_mutant_decodes():
    assert decode_message(encode_message(MESSAGE)) == MESSAGE
    assert decode_proposal(encode_proposal(PROPOSAL)) == PROPOSAL
    assert decode_choice(encode_choice(CHOICE)) == CHOICE


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        ({"agreement": bytes(31)}, Reason.INVALID_REQUEST, "agreement"),
        ({"agreement": b""}, Reason.INVALID_REQUEST, "agreement"),
        ({"stage": ""}, Reason.INVALID_REQUEST, "stage"),
        ({"stage": "Masked"}, Reason.INVALID_REQUEST, "stage"),
        ({"stage": "m" * 33}, Reason.INVALID_REQUEST, "stage"),
        ({"body": PointBatch(2, bytes(63))}, Reason.COUNT_MISMATCH, "points"),
        ({"body": PointBatch(0, bytes(32))}, Reason.COUNT_MISMATCH, "points"),
        ({"body": PointBatch(MAX_ROWS + 1, bytes(MAX_ROWS + 1))}, Reason.TOO_LARGE, "points"),
        ({"body": SealedBatch(1, bytes(32), bytes(59), 60)}, Reason.COUNT_MISMATCH, "sealed"),
        ({"body": SealedBatch(0, b"", b"", 0)}, Reason.INVALID_REQUEST, "sealed_bytes"),
        ({"body": SealedBatch(0, b"", b"", 8193)}, Reason.INVALID_REQUEST, "sealed_bytes"),
        ({"body": TagBatch(1, bytes(15), bytes(32), 32)}, Reason.COUNT_MISMATCH, "tags"),
        ({"body": TagBatch(1, bytes(17), bytes(32), 32)}, Reason.COUNT_MISMATCH, "tags"),
        ({"body": TagBatch(1, bytes(16), bytes(31), 32)}, Reason.COUNT_MISMATCH, "values"),
        ({"body": TagBatch(1, bytes(16), b"", 0)}, Reason.INVALID_REQUEST, "value_bytes"),
        ({"body": KeyBody(b"")}, Reason.INVALID_REQUEST, "key"),
        ({"body": KeyBody(bytes(4097))}, Reason.INVALID_REQUEST, "key"),
    ],
    ids=lambda value: "" if isinstance(value, (Reason, str)) else repr(value)[:60],
)
def test_a_malformed_message_is_refused_by_field(change, reason, field):
    assert refused(decode_message, encode_message(dataclasses.replace(MESSAGE, **change))) == (reason, field)


def test_a_message_without_a_body_is_refused():
    wire = psi_pb2.TaskMessage(agreement=bytes(32), stage="masked")
    assert refused(decode_message, wire.SerializeToString())[0] is Reason.INVALID_REQUEST


@pytest.mark.parametrize("decode", [decode_message, decode_proposal, decode_choice])
def test_what_is_no_message_is_refused(decode):
    assert refused(decode, b"\xff\xff\xff")[0] is Reason.INVALID_REQUEST
    assert refused(decode, b"")[0] is Reason.INVALID_REQUEST


def test_size_is_checked_before_parsing():
    assert refused(decode_message, b"\xff" * (MAX_MESSAGE_BYTES + 1))[0] is Reason.TOO_LARGE
    assert refused(decode_proposal, b"\xff" * (MAX_HANDSHAKE_BYTES + 1))[0] is Reason.TOO_LARGE


def test_unknown_fields_are_ignored():
    unknown = b"\xf8\x07\x01"  # field 127, varint
    assert decode_message(encode_message(MESSAGE) + unknown) == MESSAGE


@pytest.mark.parametrize(
    "change",
    [
        {"party": ""},
        {"party": "x" * 201},
        {"algorithms": ()},
        {"algorithms": PROPOSAL.algorithms * 2},
        {
            "algorithms": tuple(
                dataclasses.replace(PROPOSAL.algorithms[0], algorithm=f"a/{i}") for i in range(33)
            )
        },
        {"algorithms": (AlgorithmProposal("psi.ecdh/1", (), ("f",)),)},
        {"algorithms": (AlgorithmProposal("psi.ecdh/1", ("s",), ()),)},
        {"algorithms": (AlgorithmProposal("psi.ecdh/1", ("s", "s"), ("f",)),)},
        {"algorithms": (AlgorithmProposal("psi.ecdh/1", ("s", "S!"), ("f",)),)},
        {"algorithms": (AlgorithmProposal("", ("s",), ("f",)),)},
    ],
    ids=lambda change: repr(change)[:60],
)
def test_a_malformed_proposal_is_refused(change):
    data = encode_proposal(dataclasses.replace(PROPOSAL, **change))
    assert refused(decode_proposal, data)[0] is Reason.INVALID_REQUEST


@pytest.mark.parametrize("field", ["algorithm", "suite", "format"])
def test_a_malformed_choice_is_refused_by_field(field):
    wire = handshake_pb2.Choice(algorithm="a", suite="s", format="f")
    setattr(wire, field, "no id")
    assert refused(decode_choice, wire.SerializeToString()) == (Reason.INVALID_REQUEST, field)
