import dataclasses

import numpy as np
import pytest

from tdn_interop.algo.message import MAX_MESSAGE_BYTES, MAX_ROWS, PointBatch, TaskMessage
from tdn_interop.algo.psi.ecdh import DOUBLE_MASKED, MASKED
from tdn_interop.algo.task import Aborted, Progress, Received, Started, State, perform
from tdn_interop.algo.wire import encode_message
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, TdnError
from tests.algo import reference
from tests.algo.parties import AGREEMENT, EPOCH, KERNEL, Run, entropy, simulate, two_party


def numbered(start: int, stop: int) -> list[bytes]:
    return [b"item-%d" % i for i in range(start, stop)]


def plaintext(own: list[bytes], other: list[bytes]) -> tuple[int, ...]:
    return tuple(i for i, item in enumerate(own) if item in set(other))


def points_of(run: Run, sender: str, to: str, stage: str) -> list[bytes]:
    rows = b"".join(m.body.points for m in run.between(sender, to) if m.stage == stage)
    return [rows[i : i + 32] for i in range(0, len(rows), 32)]


SIZES = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2), (1000, 1000), (1000, 3)]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("overlap", ["none", "part", "full"])
def test_the_result_is_the_plaintext_intersection(sizes, overlap):
    n, m = sizes
    shift = {"none": n, "part": n // 2, "full": 0}[overlap]
    a, b = numbered(0, n), numbered(shift, shift + m)[::-1]
    run = simulate(two_party(a, b), seed=n + m)
    assert run.outputs == {"a": plaintext(a, b), "b": plaintext(b, a)}
    matches = len(plaintext(a, b))
    facts = {"items.a": n, "items.b": m, "matches": matches}
    assert run.reports == {"a": facts, "b": facts}


@pytest.mark.parametrize("receivers", ["a", "b", "ab"])
def test_only_receivers_get_what_they_need(receivers):
    a, b = numbered(0, 30), numbered(20, 60)
    run = simulate(two_party(a, b, receivers))
    assert set(run.outputs) == set(receivers)
    for role, peer in (("a", "b"), ("b", "a")):
        back = points_of(run, peer, role, DOUBLE_MASKED)
        assert len(back) == (len({"a": a, "b": b}[role]) if role in receivers else 0)
        assert ("matches" in run.reports[role]) == (role in receivers)
        held = run.machines[role]
        if role not in receivers:
            assert not held._theirs
            assert not held._returned


def test_a_party_that_is_no_receiver_refuses_the_second_stage():
    machines = two_party(numbered(0, 2), numbered(0, 2), "b")
    machines["a"].step(Started())
    body = PointBatch(1, reference.encoded(9))
    with pytest.raises(PeerProtocolError) as caught:
        machines["a"].step(Received("b", TaskMessage(AGREEMENT, EPOCH, DOUBLE_MASKED, 0, True, body)))
    assert caught.value.reason is Reason.STATE_CONFLICT
    assert machines["a"].state is State.FAILED


def test_two_runs_share_no_point():
    a, b = numbered(0, 50), numbered(25, 75)
    runs = [simulate(two_party(a, b, seed=seed)) for seed in range(2)]
    first, second = ({p for m in run.sent for p in _rows(m[2])} for run in runs)
    assert len(first) == len(second) == 4 * 50 - 25  # a common item has one double-masked point
    assert not first & second


def _rows(message: TaskMessage) -> list[bytes]:
    return [message.body.points[i : i + 32] for i in range(0, len(message.body.points), 32)]


def test_one_scalar_serves_a_whole_run_and_is_gone_after_it():
    machines = two_party(numbered(0, 5), numbered(3, 9))
    run = simulate(machines)
    for machine in machines.values():
        assert machine.state is State.DONE
        assert [bytes(secret) for secret in machine._secrets] == [bytes(32)]
    assert points_of(run, "a", "b", MASKED) != points_of(run, "b", "a", DOUBLE_MASKED)


def test_the_scalar_is_gone_after_failure_and_abort():
    aborted, failed = (two_party(numbered(0, 5), numbered(3, 9))["a"] for _ in range(2))
    for machine in (aborted, failed):
        machine.step(Started())
        assert any(machine._secrets[0])
    aborted.step(Aborted())
    foreign = TaskMessage(bytes(32), EPOCH, MASKED, 0, True, PointBatch(0, b""))
    with pytest.raises(PeerProtocolError):
        failed.step(Received("b", foreign))
    for machine in (aborted, failed):
        assert machine.state is State.FAILED
        assert machine.over
        assert not any(machine._secrets[0])


def rank_correlation(order: list[int]) -> float:
    return float(np.corrcoef(np.arange(len(order)), order)[0, 1])


def sent_order(items: list[bytes], seed: int, *, shuffled: bool = True) -> list[int]:
    """Position in `items` of each point that `a` sends, found with a's scalar."""
    source = entropy((seed, "order"))
    scalars: list[bytes] = []

    def observed(count: int) -> bytes:
        if not scalars:
            scalars.append(source(32))
            return scalars[0]
        return source(count) if shuffled else b"".join(i.to_bytes(16, "big") for i in range(count // 16))

    machines = two_party(items, items, seed=seed)
    machines["a"].task = dataclasses.replace(machines["a"].task, entropy=observed)
    run = simulate(machines)
    once = [row.tobytes() for row in KERNEL.mask(scalars[0], KERNEL.hash(items))]
    return [once.index(point) for point in points_of(run, "a", "b", MASKED)]


def test_the_order_of_sending_tells_nothing_about_the_order_of_items():
    items = numbered(0, 40)
    correlations = [rank_correlation(sent_order(items, seed)) for seed in range(32)]
    # Under independence one correlation of 40 ranks has deviation 1/sqrt(39); the mean of 32 has 0.0283.
    assert abs(np.mean(correlations)) < 4 * 0.0283
    assert max(map(abs, correlations)) < 0.75


def test_the_control_without_shuffling_is_noticed():
    assert abs(rank_correlation(sent_order(numbered(0, 40), 0, shuffled=False))) > 0.99


def test_the_result_does_not_depend_on_batches(monkeypatch):
    a, b = numbered(0, 70), numbered(35, 90)
    results = []
    for size in (1, 7, 16_384):
        monkeypatch.setattr("tdn_interop.algo.psi.sets.rows_per_batch", lambda _, size=size: size)
        run = simulate(two_party(a, b), seed=size)
        results.append(run.outputs)
        stages = [m for m in run.between("a", "b") if m.stage == MASKED]
        assert [m.batch_index for m in stages] == list(range(-(-70 // size)))
        assert [m.last for m in stages] == [False] * (len(stages) - 1) + [True]
    assert results[0] == results[1] == results[2] == {"a": plaintext(a, b), "b": plaintext(b, a)}


def test_batches_stay_below_the_message_limit():
    a = numbered(0, MAX_ROWS + 1)
    machine = two_party(a, [])["a"]
    (shuffle,) = machine.step(Started())
    effects = machine.step(perform(shuffle))
    assert [len(effect.args[2]) for effect in effects] == [MAX_ROWS, 1]
    full = TaskMessage(AGREEMENT, EPOCH, MASKED, 0, False, PointBatch(MAX_ROWS, bytes(32 * MAX_ROWS)))
    assert len(encode_message(full)) < MAX_MESSAGE_BYTES


def test_runs_of_equal_size_have_one_message_shape_whatever_the_overlap():
    def shape(b):
        run = simulate(two_party(numbered(0, 60), b), seed=1)
        return [(s, t, m.stage, m.batch_index, m.last, m.body.count) for s, t, m in run.sent]

    assert shape(numbered(0, 60)) == shape(numbered(60, 120)) == shape(numbered(30, 90))


def test_psi_is_symmetric_and_indifferent_to_order():
    a, b = numbered(0, 40), numbered(20, 80)
    forward = simulate(two_party(a, b)).outputs["a"]
    swapped = simulate(two_party(b, a)).outputs["b"]
    turned = simulate(two_party(a[::-1], b)).outputs["a"]
    assert forward == swapped == tuple(sorted(39 - i for i in turned))


def test_progress_counts_every_item_of_every_stage():
    machine = two_party(numbered(0, 10), numbered(5, 20))["a"]
    seen: dict[str, int] = {}
    original = machine.step

    def counted(event):
        effects = original(event)
        for effect in effects:
            if isinstance(effect, Progress):
                seen[effect.stage] = seen.get(effect.stage, 0) + effect.items
        return effects

    machine.step = counted
    simulate({"a": machine, "b": two_party(numbered(0, 10), numbered(5, 20))["b"]})
    assert seen == {MASKED: 10, DOUBLE_MASKED: 15}


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([b"x", b"y", b"x"], Reason.INVALID_ITEM),
        ([b"x", b""], Reason.INVALID_ITEM),
        (numbered(0, 9), Reason.TOO_LARGE),
    ],
    ids=["repeated", "empty", "too many"],
)
def test_own_items_are_checked(items, reason):
    with pytest.raises(ConfigError) as caught:
        two_party(items, [], max_items=8)
    assert caught.value.reason is reason


def edit(to: str, stage: str, change):
    """A tamper function: apply `change` to every message of one stage towards one role."""
    return lambda _s, t, m: change(m) if (t, m.stage) == (to, stage) else (m,)


def reason_of(tamper, receivers: str = "ab", **changes) -> Reason:
    machines = two_party(numbered(0, 6), numbered(3, 9), receivers, **changes)
    with pytest.raises(TdnError) as caught:
        simulate(machines, tamper=tamper)
    failed = [machine for machine in machines.values() if machine.state is State.FAILED]
    assert len(failed) == 1
    assert not any(failed[0]._secrets[0])
    return caught.value.reason


def replace_points(change):
    return lambda m: (
        dataclasses.replace(m, body=PointBatch(len(points := change(_rows(m))), b"".join(points))),
    )


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("stage", [MASKED, DOUBLE_MASKED])
@pytest.mark.parametrize(
    "bad", [reference.encoded(0), reference.encoded(reference.P), b"\xff" * 32], ids=["0", "p", "ff"]
)
def test_a_bad_point_ends_the_run_and_its_product_never_leaves(stage, position, bad):
    if stage == DOUBLE_MASKED and not any(bad):
        return  # only compared, never multiplied: a low-order point there matches nothing
    change = replace_points(lambda rows: [*rows[:position], bad, *rows[position + 1 :]])
    machines = two_party(numbered(0, 6), numbered(3, 9))
    outcome = Run(machines)

    def tamper(sender, to, message):
        outcome.sent.append((sender, to, message))
        return edit("b", stage, change)(sender, to, message)

    with pytest.raises(PeerProtocolError) as caught:
        simulate(machines, tamper=tamper)
    assert caught.value.reason is Reason.BAD_POINT
    assert caught.value.metadata["index"] == str(position)
    assert not points_of(outcome, "b", "a", DOUBLE_MASKED) or stage == DOUBLE_MASKED


def empty_first(message):
    empty = dataclasses.replace(message, last=False, body=PointBatch(0, b""))
    return empty, dataclasses.replace(message, batch_index=1)


def more_without_an_end(message):
    (longer,) = replace_points(lambda rows: [*rows, rows[0]])(message)
    return (dataclasses.replace(longer, last=False),)


@pytest.mark.parametrize(
    ("stage", "change", "reason"),
    [
        (MASKED, lambda m: (dataclasses.replace(m, batch_index=1),), Reason.BATCH_ORDER),
        (MASKED, lambda m: (dataclasses.replace(m, last=False), m), Reason.BATCH_ORDER),
        (MASKED, empty_first, Reason.BATCH_ORDER),
        (MASKED, lambda m: (dataclasses.replace(m, agreement=bytes(32)),), Reason.TRANSCRIPT_MISMATCH),
        (MASKED, lambda m: (dataclasses.replace(m, epoch=EPOCH + 1),), Reason.STATE_CONFLICT),
        (MASKED, lambda m: (dataclasses.replace(m, stage="dual-enc"),), Reason.STATE_CONFLICT),
        (MASKED, lambda m: (dataclasses.replace(m, body=PointBatch(12, m.body.points)),), Reason.COUNT_MISMATCH),
        (MASKED, replace_points(lambda rows: rows[1:]), Reason.COUNT_MISMATCH),
        (DOUBLE_MASKED, replace_points(lambda rows: rows[1:]), Reason.COUNT_MISMATCH),
        (DOUBLE_MASKED, replace_points(lambda rows: [*rows, rows[0]]), Reason.COUNT_MISMATCH),
        (DOUBLE_MASKED, more_without_an_end, Reason.COUNT_MISMATCH),
        (DOUBLE_MASKED, replace_points(lambda rows: [*rows[1:], rows[1]]), Reason.INVALID_REQUEST),
    ],
    ids=[
        "gap", "repeated index", "empty, not last", "other agreement", "newer epoch",
        "unknown stage", "count", "point lost", "fewer back", "more back", "more back, not last",
        "repeated back",
    ],
)  # fmt: skip
def test_a_broken_rule_has_its_reason(stage, change, reason):
    assert reason_of(edit("b", stage, change)) is reason


@pytest.mark.parametrize("index", [0, 1])
def test_nothing_may_follow_the_last_batch(index):
    machine = two_party(numbered(0, 2), [])["a"]
    machine.step(Started())
    last = TaskMessage(AGREEMENT, EPOCH, MASKED, 0, True, PointBatch(1, reference.encoded(9)))
    machine.step(Received("b", last))
    with pytest.raises(PeerProtocolError) as caught:
        machine.step(Received("b", dataclasses.replace(last, batch_index=index)))
    assert caught.value.reason is Reason.BATCH_ORDER


def test_a_repeated_point_is_refused_before_it_counts_twice():
    twice = replace_points(lambda rows: [rows[0], *rows])
    assert reason_of(edit("b", MASKED, twice), receivers="b") is Reason.INVALID_REQUEST


def test_points_that_come_back_before_they_were_sent_are_refused():
    machine = two_party(numbered(0, 2), [])["a"]
    machine.step(Started())
    body = PointBatch(1, reference.encoded(9))
    with pytest.raises(PeerProtocolError) as caught:
        machine.step(Received("b", TaskMessage(AGREEMENT, EPOCH, DOUBLE_MASKED, 0, False, body)))
    assert caught.value.reason is Reason.UNEXPECTED_MESSAGE


def test_more_items_than_the_limit_are_refused():
    machines = {
        "a": two_party(numbered(0, 9), [])["a"],
        "b": two_party([], numbered(0, 8), max_items=8)["b"],
    }
    with pytest.raises(PeerProtocolError) as caught:
        simulate(machines)
    assert caught.value.reason is Reason.TOO_LARGE


def test_a_message_of_an_older_epoch_is_refused_and_the_run_goes_on():
    machines = two_party(numbered(0, 6), numbered(3, 9))
    old = simulate(two_party(numbered(0, 6), numbered(3, 9), epoch=EPOCH - 1)).between("a", "b")
    for message in old:
        with pytest.raises(PeerProtocolError) as caught:
            machines["b"].step(Received("a", message))
        assert caught.value.reason is Reason.STALE
        assert machines["b"].state is State.IDLE
    assert simulate(machines).outputs["b"] == (0, 1, 2)


def test_an_older_epoch_of_another_agreement_is_a_mismatch_and_ends_the_run():
    machine = two_party(numbered(0, 6), [])["a"]
    machine.step(Started())
    with pytest.raises(PeerProtocolError) as caught:
        machine.step(Received("b", TaskMessage(bytes(32), EPOCH - 1, MASKED, 0, True, PointBatch(0, b""))))
    assert caught.value.reason is Reason.TRANSCRIPT_MISMATCH
    assert machine.state is State.FAILED
