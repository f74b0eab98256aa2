"""Neither holder ever has both double-masked sets, no run repeats a point, and sizes do not show the overlap.

The same questions as those put to a real run in `test_leak.py`, and machines with planted faults that the
answers must notice.
"""

import random
from collections import defaultdict

import pytest

from tdn_interop.algo.message import TAG_BYTES, PointBatch, TagBatch
from tdn_interop.algo.psi import external as psi
from tdn_interop.algo.psi import sealing
from tdn_interop.algo.psi.external import HOLDER_A, HOLDER_B, RECEIVER, HolderA, HolderB
from tdn_interop.algo.psi.sets import point_batch
from tdn_interop.algo.task import Outbound
from tdn_interop.algo.wire import encode_message
from tests.algo.parties import KERNEL, entropy, external, simulate, task, two_party
from tests.interop.scanner_sets import View, points, stages, what_helps

LEAK = "leak"
A = [b"common %d" % n for n in range(5)] + [b"only a %d" % n for n in range(9)]
B = [b"common %d" % n for n in range(5)] + [b"only b %d" % n for n in range(12)]


class Tap:
    """Hears every message; what only a faulty peer sends is heard, and kept from the honest machine."""

    def __init__(self):
        self.heard = defaultdict(list)
        self.streams = defaultdict(list)

    def __call__(self, sender, to, message):
        self.heard[to].append(message)
        self.streams[sender, to, message.stage].append(len(encode_message(message)))
        return () if message.stage == LEAK else (message,)


def run(machines, seed=0):
    """(tap, scalar by role) after a run; scalars are the first secrets and are gone when it ends."""
    tap, scalars = Tap(), {}
    for role, machine in machines.items():
        keep = machine._secret

        def kept(value, role=role, keep=keep):
            scalars.setdefault(role, value)
            return keep(value)

        machine._secret = kept
    simulate(machines, seed, tap)
    return tap, scalars


def helped(machines, roles=(HOLDER_A, HOLDER_B)):
    tap, scalars = run(machines)
    views = [View(items, scalars[role], tap.heard[role]) for role, items in zip(roles, (A, B), strict=True)]
    return what_helps(KERNEL, *views)


def test_an_honest_run_helps_nobody():
    tap, _ = run(external(A, B))
    assert stages(tap.heard[HOLDER_A]) == {"sealed": len(B)}
    assert stages(tap.heard[HOLDER_B]) == {"masked": len(A), "receiver-key": 1}
    assert helped(external(A, B)) == []


# -- planted faults


def leaks(machine, to, body):
    return Outbound(machine.task, to, LEAK).put(0, body, last=True)


class Returns(HolderB):
    """Gives holder a its own points back, double-masked: P."""

    def _on_masked(self, index, batch, last):
        yield from super()._on_masked(index, batch, last)
        twice = KERNEL.mask(self._scalar, self._points(batch.points, batch.count))
        yield from leaks(self, HOLDER_A, point_batch(twice))


class Tells(HolderA):
    """Gives holder b the points that a double-masked: Q."""

    def _on_sealed(self, index, batch, last):
        yield from super()._on_sealed(index, batch, last)
        twice = KERNEL.mask(self._scalar, self._points(batch.points, batch.count))
        yield from leaks(self, HOLDER_B, point_batch(twice))


class Copies(HolderA):
    """Gives holder b what is for the receiver: the tags of Q."""

    def _on_tagged(self, rows):
        yield from super()._on_tagged(rows)
        tags = rows[0].tobytes()
        yield from leaks(self, HOLDER_B, TagBatch(len(rows[0]), tags, tags, TAG_BYTES))


class Unlocks(HolderB):
    """Gives holder a what is for the receiver: the keys of P."""

    def _on_tagged(self, rows):
        yield from super()._on_tagged(rows)
        yield from leaks(self, HOLDER_A, PointBatch(len(rows[1]), rows[1].tobytes()))


FAULTS = {
    # For the common items P and Q are the same points.
    Returns: ["a received P", "a received Q"],
    Tells: ["b received P", "b received Q"],
    Copies: ["b received tag(P)", "b received tag(Q)"],
    Unlocks: ["a received key(P)", "a received key(Q)"],
}


@pytest.mark.parametrize("faulty", FAULTS)
def test_a_planted_fault_is_noticed(faulty):
    machines = external(A, B)
    role = HOLDER_A if issubclass(faulty, HolderA) else HOLDER_B
    machines[role] = faulty(task((0, role)), A if role == HOLDER_A else B)
    assert helped(machines) == FAULTS[faulty]


def test_points_that_are_not_masked_are_noticed(monkeypatch):
    """Holder a masks what it got as it masks its own items, and sees which are equal."""
    seal = sealing.mask_and_seal

    def bare(kernel, scalar, item_key, items, *rest):
        return kernel.hash(items), seal(kernel, scalar, item_key, items, *rest)[1]

    monkeypatch.setattr(psi.sealing, "mask_and_seal", bare)
    assert helped(external(A, B)) == ["a matches"]


def test_a_scalar_that_both_use_is_noticed():
    machines = external(A, B)
    machines[HOLDER_A] = HolderA(task(entropy=entropy("same")), A)
    machines[HOLDER_B] = HolderB(task(entropy=entropy("same")), B)
    found = helped(machines)
    assert "a matches" in found
    assert "b matches" in found


# -- two holders, one of them receives: the other must not get its own points back


@pytest.mark.parametrize(("receiver", "other"), ["ab", "ba"])
def test_a_holder_that_receives_nothing_cannot_match(receiver, other):
    found = helped(two_party(A, B, receivers=receiver), "ab")
    assert {words for words in found if words.startswith(other)} == set()
    assert {f"{receiver} received P", f"{receiver} received Q"} & set(found)


def test_points_that_come_back_to_a_non_receiver_are_noticed():
    machines = two_party(A, B, receivers="a")
    machines["a"]._returns = True
    plain = machines["a"]._on_double_masked

    def returns(index, last, points):
        machines["a"]._back._stage = LEAK
        return plain(index, last, points)

    machines["a"]._on_double_masked = returns
    assert {"b received P", "b received Q"} <= set(helped(machines, "ab"))


# -- freshness and sizes


def everything(machines):
    tap, _ = run(machines)
    return points(message for heard in tap.heard.values() for message in heard)


@pytest.mark.parametrize("make", [external, two_party])
def test_two_runs_share_no_point(make):
    one, two = everything(make(A, B, seed=1)), everything(make(A, B, seed=2))
    assert len(one) > 2 * len(A)
    assert not one & two
    assert everything(make(A, B, seed=1)) == one  # the scalars are all that keeps two runs apart


def shape(machines, seed):
    """Sizes of the messages of each stage, in order."""
    return dict(run(machines, seed)[0].streams)


@pytest.mark.parametrize("make", [external, two_party])
@pytest.mark.parametrize("secret", range(16))
def test_sizes_do_not_show_the_overlap(make, secret):
    dice = random.Random(secret)

    def items(count):
        return [dice.randbytes(20) for _ in range(count)]

    theirs = items(40)
    none, some = [*items(40)], [*theirs[:17], *items(23)]
    expected = shape(make(none, theirs, seed=secret), secret)
    assert expected
    assert shape(make(some, theirs, seed=-secret), secret + 1) == expected
    assert shape(make(dice.sample(theirs, 40), theirs, seed="all"), secret + 2) == expected
    # What sizes may show is seen: how many items, and how long the longest is.
    assert shape(make(items(41), theirs, seed=secret), secret) != expected


def test_the_size_class_of_the_longest_item_shows():
    short, long = ([b"x" * length, *B] for length in (30, 31))
    assert shape(external(A, short), 0) != shape(external(A, long), 0)
    assert shape(external(A, [*B, b"y" * 9]), 0) == shape(external(A, [*B, b"y" * 30]), 0)


def test_only_the_receiver_gets_tags():
    tap, _ = run(external(A, B))
    assert stages(tap.heard[RECEIVER]) == {"item-key": 1, "tagged-sealed": len(B), "tagged-keys": len(A)}
