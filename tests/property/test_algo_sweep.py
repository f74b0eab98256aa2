"""Every machine in every state it can reach, against every event: legal, or a typed refusal and the right state."""

import dataclasses
import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.algo.machine import LocalEvent
from tdn_interop.algo.message import KeyBody, PointBatch, SealedBatch, TagBatch, TaskMessage
from tdn_interop.algo.psi import ecdh
from tdn_interop.algo.psi import external as ext
from tdn_interop.algo.task import (
    TERMINAL,
    Aborted,
    Computed,
    ComputeRefused,
    Received,
    Started,
    State,
)
from tdn_interop.errors import LocalProtocolError, PeerProtocolError, Reason, TdnError
from tests.algo.parties import AGREEMENT, EPOCH, external, simulate, two_party

ROLES = ["a", "b", "b only receives", "a gives", ext.HOLDER_A, ext.HOLDER_B, ext.RECEIVER]
ITEMS = [b"item-%d" % i for i in range(6)]


def machines(name: str):
    """Fresh machines of the run in which `name` plays, and its role there."""
    match name:
        case "a" | "b":
            return two_party(ITEMS[:4], ITEMS[2:]), name
        case "b only receives":
            return two_party(ITEMS[:4], ITEMS[2:], "b"), "b"
        case "a gives":
            return two_party(ITEMS[:4], ITEMS[2:], "b"), "a"
        case _:
            return external(ITEMS[:4], ITEMS[2:]), name


@functools.cache
def honest(name: str, seed: int):
    """Events fed to `name` in an honest run, one interleaving a seed."""
    parties, role = machines(name)
    return tuple(simulate(parties, seed).fed[role])


def reached(name: str, seed: int, steps: int):
    parties, role = machines(name)
    for event in honest(name, seed)[:steps]:
        parties[role].step(event)
    return parties[role]


stages = st.sampled_from(
    [
        ecdh.MASKED,
        ecdh.DOUBLE_MASKED,
        ext.RECEIVER_KEY,
        ext.ITEM_KEY,
        ext.SEALED,
        ext.TAGGED_SEALED,
        ext.TAGGED_KEYS,
        "no-such-stage",
    ]
)
NINE = (9).to_bytes(32, "little")
all_bodies = st.sampled_from(
    [
        PointBatch(0, b""),
        PointBatch(1, NINE),
        PointBatch(1, bytes(32)),
        PointBatch(2, NINE),
        SealedBatch(1, NINE, bytes(60), 60),
        SealedBatch(1, bytes(16), bytes(60), 60),
        TagBatch(1, bytes(16), bytes(32), 32),
        TagBatch(2, bytes(32), bytes(152), 76),
        KeyBody(bytes(1216)),
        KeyBody(b"k"),
    ]
)
foreign = st.builds(
    Received,
    st.sampled_from(["a", "b", ext.HOLDER_A, ext.HOLDER_B, ext.RECEIVER, "nobody"]),
    st.builds(
        TaskMessage,
        st.sampled_from([AGREEMENT, bytes(32)]),
        st.sampled_from([EPOCH, EPOCH - 1, EPOCH + 1]),
        stages,
        st.integers(0, 2),
        st.booleans(),
        all_bodies,
    ),
)
REFUSAL = PeerProtocolError(Reason.BAD_POINT, "by a computation", "TDN-A-PSI-06")
local = st.one_of(
    st.builds(Started),
    st.builds(Aborted),
    st.builds(ComputeRefused, st.integers(0, 6), st.just(REFUSAL)),
    st.builds(Computed, st.just(99), st.none()),
)
replayed = st.integers(0, 30)


def outcome(machine, event):
    """(effects, None) or (None, refusal); anything else than a TdnError fails the test by itself."""
    try:
        return machine.step(event), None
    except TdnError as error:
        return None, error


def check(machine, event) -> None:
    before = machine.state
    _, error = outcome(machine, event)
    if error is None:
        return
    assert error.requirement
    if error.reason is Reason.STALE or (before in TERMINAL and isinstance(event, LocalEvent)):
        assert machine.state is before
    elif isinstance(event, Received):
        assert isinstance(error, PeerProtocolError)
        assert machine.state is State.FAILED
    elif (before, type(event)) not in machine.table:
        assert (type(error), error.reason) == (LocalProtocolError, Reason.STATE_CONFLICT)
        assert machine.state is before
    else:
        assert machine.state is State.FAILED
    if machine.state is State.FAILED:
        nothing_more(machine)


def nothing_more(machine) -> None:
    """A failed machine sends nothing, whatever comes, and holds no secret."""
    assert not any(any(secret) for secret in machine._secrets)
    message = TaskMessage(AGREEMENT, EPOCH, ecdh.MASKED, 0, True, PointBatch(0, b""))
    for event in (
        Started(),
        Aborted(),
        Computed(1, None),
        ComputeRefused(1, REFUSAL),
        Received("b", message),
    ):
        effects, error = outcome(machine, event)
        assert effects is None
        assert error is not None
        assert machine.state is State.FAILED


@pytest.mark.parametrize("name", ROLES)
@given(seed=st.integers(0, 3), steps=st.integers(0, 40), event=st.one_of(foreign, local))
def test_any_event_in_any_state_is_handled_or_refused(name, seed, steps, event):
    check(reached(name, seed, steps), event)


@pytest.mark.parametrize("name", ROLES)
@given(seed=st.integers(0, 3), steps=st.integers(0, 40), again=st.integers(0, 40))
def test_any_event_of_the_run_out_of_place_is_handled_or_refused(name, seed, steps, again):
    events = honest(name, seed)
    check(reached(name, seed, steps), events[again % len(events)])


@pytest.mark.parametrize("name", ROLES)
@given(seed=st.integers(0, 3), steps=st.integers(0, 40), data=st.data())
def test_an_altered_envelope_never_gets_through(name, seed, steps, data):
    events = honest(name, seed)
    coming = [event for event in events[steps:] if isinstance(event, Received)]
    if not coming:
        return
    change, reason = data.draw(
        st.sampled_from(
            [
                ({"agreement": b"\1" * 32}, Reason.TRANSCRIPT_MISMATCH),
                ({"epoch": EPOCH - 1}, Reason.STALE),
                ({"epoch": EPOCH + 1}, Reason.STATE_CONFLICT),
                ({"batch_index": coming[0].message.batch_index + 1}, Reason.BATCH_ORDER),
                ({"stage": "other"}, Reason.STATE_CONFLICT),
            ]
        )
    )
    machine = reached(name, seed, steps)
    altered = Received(coming[0].sender, dataclasses.replace(coming[0].message, **change))
    effects, error = outcome(machine, altered)
    assert effects is None
    expected = Reason.UNEXPECTED_MESSAGE if steps == 0 and reason is not Reason.STALE else reason
    assert error.reason is expected


@pytest.mark.parametrize("name", ROLES)
def test_abort_ends_every_state_and_every_state_is_reached(name):
    seen = set()
    for steps in range(len(honest(name, 0)) + 1):
        machine = reached(name, 0, steps)
        seen.add(machine.state)
        if machine.over:
            continue
        assert machine.step(Aborted()) == []
        assert machine.state is State.FAILED
        nothing_more(machine)
    own_states = {target for _, target in type(machine).table.values() if target} | {State.IDLE}
    passing = {State.MATCHING} if name == "a gives" else set()  # it has nothing to match and goes straight on
    passing |= {State.OPENING} if name == ext.RECEIVER and State.OPENING not in seen else set()
    assert seen | passing | {State.FAILED} == own_states


@pytest.mark.parametrize("name", ROLES)
def test_the_table_names_a_next_step_for_every_running_state(name):
    parties, role = machines(name)
    table = type(parties[role]).table
    states = {state for state, _ in table} | {target for _, target in table.values() if target}
    for state in states - TERMINAL:
        assert (state, Aborted) in table
    assert not {state for state, _ in table} & TERMINAL
