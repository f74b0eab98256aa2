"""Every state against every event: a legal state, or a typed error and the promised consequence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.errors import LocalProtocolError, Reason, TdnError, Unavailable
from tdn_interop.transport.event import (
    Aborted,
    Connected,
    Consumed,
    Disconnected,
    Event,
    Left,
    LocalEvent,
    Queued,
    Ticked,
)
from tdn_interop.transport.frame import (
    Ack,
    Credit,
    Data,
    Failure,
    Goodbye,
    Hello,
    Reset,
    Status,
)
from tdn_interop.transport.session import ENDED, Session, State
from tests.transport.sessions import SESSION_ID, SMALL, credentials, session

EVENTS = [
    Connected(), Disconnected(), Queued("t", b"x" * 150), Consumed("t", 300), Left(), Ticked(),
    Aborted(Unavailable(Reason.SESSION_CLOSED, "enough", "TDN-T-SES-05")),
    Hello((1,), SESSION_ID, False, credentials("b.cn"), SMALL),
    Hello((1,), SESSION_ID, True, credentials("b.cn"), SMALL),
    Data("t", 0, 3, 0, b"abc"), Data("t", 1, 3, 0, b"abc"), Data("t", 0, 3, 1, b"abc"), Ack("t", 1), Ack("t", 0),
    Credit("t", 9000), Status(True, ()), Reset(Failure(Reason.INTERNAL, "broken")), Goodbye(),
]  # fmt: skip


def paths() -> dict[tuple[bool, State], list[Event]]:
    """Shortest ways into every state, found by walking the machine itself."""
    found: dict[tuple[bool, State], list[Event]] = {}
    for dialled in (True, False):
        frontier: list[list[Event]] = [[]]
        for _ in range(4):
            reached = []
            for path in frontier:
                found.setdefault((dialled, walk(dialled, path).state), path)
                reached += [[*path, event] for event in EVENTS if allowed(dialled, path, event)]
            frontier = reached
    return found


def walk(dialled: bool, path: list[Event]) -> Session:
    machine = session(dialled=dialled)
    for event in path:
        machine.step(event, 0)
        while machine.next_frame():
            pass
    return machine


def allowed(dialled: bool, path: list[Event], event: Event) -> bool:
    machine = walk(dialled, path)
    if isinstance(event, Consumed) or machine.state in ENDED:
        return False
    try:
        machine.step(event, 0)
    except TdnError:
        return False
    return True


PATHS = paths()


def test_every_state_is_reached_in_both_roles():
    dialling = {state for dialled, state in PATHS if dialled}
    answering = {state for dialled, state in PATHS if not dialled}
    assert dialling == set(State)
    assert answering == set(State) - {State.GREETING}


def outcome(machine: Session, event: Event, now: float) -> TdnError | None:
    try:
        machine.step(event, now)
    except TdnError as error:
        return error
    return None


def consumable(machine: Session, event: Event) -> bool:
    """A `Consumed` of a living session stands for a message that was delivered before."""
    return machine.state in ENDED or machine.state is State.NEW or not isinstance(event, Consumed)


@pytest.mark.parametrize(
    "where", PATHS, ids=lambda where: f"{'dialling' if where[0] else 'answering'}-{where[1].name}"
)
def test_every_cell(where):
    dialled, state = where
    for event in EVENTS:
        machine = walk(dialled, PATHS[where])
        assert machine.state is state
        if not consumable(machine, event):
            continue
        listed = (state, type(event)) in machine._table
        error = outcome(machine, event, 1)
        if error is None:
            assert listed
        elif isinstance(event, LocalEvent):
            assert isinstance(error, LocalProtocolError)
            assert machine.state is state, "our own mistake changes nothing"
            assert error.reason in (Reason.STATE_CONFLICT, Reason.SESSION_CLOSED, Reason.FLOW_VIOLATION)
        elif state in ENDED:
            assert machine.state is state
            assert error.reason is Reason.SESSION_CLOSED
        else:
            assert machine.state is State.FAILED
            assert listed or error.reason is Reason.UNEXPECTED_MESSAGE
            assert machine.next_frame().failure.reason is error.reason
            assert machine.next_frame() is None


@given(st.booleans(), st.lists(st.sampled_from(EVENTS), max_size=12))
def test_any_sequence_of_events_keeps_the_machine_sane(dialled, events):
    machine = session(dialled=dialled)
    for now, event in enumerate(events):
        before = machine.state
        if not consumable(machine, event):
            continue
        error = outcome(machine, event, now)
        assert error is None or error.requirement
        assert before not in ENDED or machine.state is before
        assert machine.topics.owed == sum(map(machine.topics.owed_on, machine.topics.owed_topics()))
        assert (machine.wake_at() is None) == (machine.state is State.NEW or machine.state in ENDED)
        while machine.next_frame():
            pass
