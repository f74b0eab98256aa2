import dataclasses
from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop._pb.tdn.transport.v1 import channel_service_pb2, frame_pb2
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason
from tdn_interop.identity import Credentials, Signed
from tdn_interop.transport import wire
from tdn_interop.transport.frame import (
    VERSIONS,
    Ack,
    Credit,
    Data,
    Failure,
    Goodbye,
    Hello,
    Limits,
    Reset,
    Status,
    TopicPosition,
)

u64 = st.integers(0, 2**64 - 1)
names = st.from_regex(r"[a-z0-9][a-z0-9._/-]{0,127}", fullmatch=True)
nodes = st.from_regex(r"[a-z0-9]{1,20}(\.[a-z0-9]{1,20}){0,3}", fullmatch=True)
texts = st.text(max_size=50)
signed = st.builds(Signed, st.binary(min_size=1, max_size=99), nodes, st.binary(min_size=64, max_size=64))
positions = st.lists(st.builds(TopicPosition, names, u64, u64), max_size=4, unique_by=lambda p: p.topic).map(
    tuple
)
limits = st.builds(
    Limits, st.integers(16 << 10, 1 << 20), st.integers(0, 1 << 20), st.integers(1 << 22, 1 << 41),
    st.integers(1, 1 << 16), st.integers(1, 1 << 31),
)  # fmt: skip
frames = st.one_of(
    st.builds(
        Hello, st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5).map(tuple),
        st.binary(min_size=16, max_size=16), st.booleans(), st.builds(Credentials, signed, signed), limits,
        positions, st.lists(texts, max_size=3).map(tuple),
    ),
    st.builds(Data, names, u64, u64, u64, st.binary(max_size=99)),
    st.builds(Ack, names, u64),
    st.builds(Credit, names, u64),
    st.builds(Status, st.booleans(), positions),
    st.builds(Reset, st.builds(Failure, st.sampled_from(list(Reason)), texts, nodes, texts, st.dictionaries(texts, texts, max_size=3))),
    st.just(Goodbye()),
)  # fmt: skip

CREDENTIALS = Credentials(Signed(b"r", "a.cn", bytes(64)), Signed(b"d", "a.cn", bytes(64)))
HELLO = Hello(VERSIONS, bytes(16), False, CREDENTIALS, Limits(), (TopicPosition("t", 1, 2),), ("f",))


def framed(frame):
    return channel_service_pb2.ExchangeRequest.FromString(wire.encode(frame)).frame


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, (1 << 14) - 20, 1 << 14, (1 << 21) - 15, 1 << 21])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_data_is_encoded_as_protobuf_does(size, kind):
    fields = {"topic": "a/b", "seq": 300, "message_bytes": 1 << 40, "offset": 7, "payload": bytes(size)}
    theirs = channel_service_pb2.ExchangeResponse(frame={"data": fields})
    ours = wire.encode(Data(*list(fields.values())[:4], kind(bytes(size))))
    assert ours == theirs.SerializeToString() or size == 0  # an empty payload is said or left out
    assert channel_service_pb2.ExchangeResponse.FromString(ours) == theirs


@given(frames)
def test_decode_is_the_inverse_of_encode(frame):
    serialized = framed(frame).SerializeToString()
    assert wire.decode(frame_pb2.Frame.FromString(serialized)) == frame
    assert (
        channel_service_pb2.ExchangeResponse.FromString(wire.encode(frame)).frame.SerializeToString()
        == serialized
    )


@given(frames, st.data())
def test_mutated_bytes_are_refused_or_read_but_never_crash(frame, data):
    raw = bytearray(framed(frame).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with suppress(DecodeError, PeerProtocolError):
        wire.decode(frame_pb2.Frame.FromString(cut))


@given(st.binary(max_size=200))
def test_unknown_fields_are_ignored(noise):
    extra = (
        bytes([0xFA, 0x3F, len(noise) & 0x7F]) + noise[: len(noise) & 0x7F]
    )  # field 1023, length-delimited
    raw = framed(Ack("t", 1)).SerializeToString() + extra
    assert wire.decode(frame_pb2.Frame.FromString(raw)) == Ack("t", 1)


def test_a_view_is_sent_as_its_bytes():
    assert framed(Data("t", 0, 9, 3, memoryview(b"abcdef")[2:4])).data.payload == b"cd"


BROKEN = {
    "nothing set": frame_pb2.Frame(),
    "no topic": frame_pb2.Frame(data=frame_pb2.Data()),
    "topic grammar": frame_pb2.Frame(data=frame_pb2.Data(topic="../x")),
    "topic length": frame_pb2.Frame(ack=frame_pb2.Ack(topic="t" * 129)),
    "credit topic": frame_pb2.Frame(credit=frame_pb2.Credit(topic="T")),
    "status topic twice": frame_pb2.Frame(
        status=frame_pb2.Status(positions=[frame_pb2.TopicPosition(topic="t")] * 2)
    ),
    "failure text": frame_pb2.Frame(reset={"failure": {"message": "x" * 5000}}),
    "failure metadata": frame_pb2.Frame(reset={"failure": {"metadata": {str(i): "" for i in range(99)}}}),
    "failure key": frame_pb2.Frame(reset={"failure": {"metadata": {"k" * 100: ""}}}),
}


@pytest.mark.parametrize("pb", BROKEN.values(), ids=BROKEN.keys())
def test_broken_frames_are_refused(pb):
    with pytest.raises(PeerProtocolError) as caught:
        wire.decode(pb)
    assert caught.value.reason is Reason.INVALID_REQUEST


def change(pb, field, value):
    if field == "clear":
        pb.ClearField(value)
    elif isinstance(value, list):
        getattr(pb, field)[:] = value
    else:
        setattr(pb, field, value)


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        ("", "versions", []), ("", "versions", [1] * 65), ("", "session_id", bytes(15)), ("", "session_id", bytes(17)),
        ("", "features", ["f"] * 65), ("", "features", ["f" * 65]), ("", "clear", "credentials"), ("", "clear", "limits"),
        ("credentials.record", "statement", b""), ("credentials.record", "statement", bytes(17 << 10)),
        ("credentials.record", "signature", bytes(63)), ("credentials.delegation", "signer", "No Node"),
        ("credentials.delegation", "signature", b""), ("limits", "frame_bytes", 1), ("limits", "frame_bytes", 2**32 - 1),
        ("limits", "message_bytes", 2**63), ("limits", "message_bytes", 20 << 20), ("limits", "topic_credit_bytes", 2**64 - 1),
        ("limits", "topics", 0), ("limits", "topics", 2**20), ("limits", "idle_ms", 0), ("limits", "idle_ms", 2**32 - 1),
    ],
)  # fmt: skip
def test_broken_hellos_are_refused(where, field, value):
    pb = framed(HELLO)
    target = pb.hello
    for name in filter(None, where.split(".")):
        target = getattr(target, name)
    change(target, field, value)
    with pytest.raises(PeerProtocolError) as caught:
        wire.decode(pb)
    assert caught.value.reason is Reason.INVALID_REQUEST
    assert caught.value.requirement


def test_the_hello_before_it_was_broken_is_fine():
    assert wire.decode(framed(HELLO)) == HELLO


def test_a_reason_we_do_not_know_keeps_its_words():
    reset = wire.decode(frame_pb2.Frame(reset={"failure": {"reason": "FROM_THE_FUTURE", "message": "new"}}))
    assert reset == Reset(Failure(Reason.INTERNAL, "new"))


def test_a_failure_that_is_too_long_is_cut_by_its_sender():
    failure = Failure(Reason.INTERNAL, "x" * 9999, metadata={str(i): "y" * 9999 for i in range(200)})
    read = wire.decode(framed(Reset(failure)))
    assert len(read.failure.message) == 2048
    assert len(read.failure.metadata) == 64


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ({}, True), ({"frame_bytes": 16 << 10}, True), ({"frame_bytes": (16 << 10) - 1}, False), ({"topics": 0}, False), ({"idle_ms": 0}, False),
        ({"message_bytes": 20 << 20}, False),  # the frames' own cost does not fit any more
        ({"message_bytes": 1000, "topic_credit_bytes": 1256}, True),
        ({"message_bytes": 1000, "topic_credit_bytes": 1255}, False),
    ],
)  # fmt: skip
def test_limits_agree_with_each_other(change, ok):
    limits = dataclasses.replace(Limits(), **change)
    if ok:
        limits.check()
        return
    with pytest.raises(ConfigError):
        limits.check(ConfigError)
