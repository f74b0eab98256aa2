import dataclasses
import hashlib

import pytest

from tdn_interop.algo.message import KeyBody, PointBatch, SealedBatch, TagBatch
from tdn_interop.algo.psi import sealing
from tdn_interop.algo.psi.external import (
    HOLDER_A,
    HOLDER_B,
    ITEM_KEY,
    MASKED,
    RECEIVER,
    RECEIVER_KEY,
    SEALED,
    TAGGED_KEYS,
    TAGGED_SEALED,
)
from tdn_interop.algo.task import State
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason, TdnError
from tests.algo import reference
from tests.algo.parties import KERNEL, Run, external, simulate


def numbered(start: int, stop: int) -> list[bytes]:
    return [b"item-%d" % i for i in range(start, stop)]


@pytest.mark.parametrize(
    "sizes", [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1), (2, 2), (1000, 1000), (3, 1000)], ids=str
)
@pytest.mark.parametrize("overlap", ["none", "part", "full"])
def test_the_receiver_gets_the_plaintext_intersection(sizes, overlap):
    n, m = sizes
    shift = {"none": n, "part": n // 2, "full": 0}[overlap]
    a, b = numbered(0, n), numbered(shift, shift + m)[::-1]
    run = simulate(external(a, b), seed=n + m)
    expected = tuple(sorted(set(a) & set(b)))
    assert run.outputs == {RECEIVER: expected}
    sizes_known = {"items.holder_a": n, "items.holder_b": m}
    assert run.reports[HOLDER_A] == run.reports[HOLDER_B] == sizes_known
    assert run.reports[RECEIVER] == {**sizes_known, "matches": len(expected)}
    assert all(machine.state is State.DONE for machine in run.machines.values())


def split(rows: bytes, size: int) -> set[bytes]:
    return {rows[i : i + size] for i in range(0, len(rows), size)}


def held_by(run: Run, role: str) -> bytes:
    """Everything that a role sent, received or keeps at the end, as one string of bytes."""
    parts = [_payload(m.body) for s, t, m in run.sent if role in (s, t)]
    machine = run.machines[role]
    return b"".join(parts) + repr(vars(machine)).encode()


def _payload(body) -> bytes:
    return b"".join(value for value in dataclasses.astuple(body) if isinstance(value, bytes))


def scalars_of(machines) -> dict[str, bytes]:
    """The scalar that each holder will draw: the first 32 bytes of its own entropy, read from a twin."""
    return {role: bytes(machines[role].task.entropy(32)) for role in (HOLDER_A, HOLDER_B)}


def double_masked(scalars: dict[str, bytes], items: list[bytes]) -> list[bytes]:
    points = KERNEL.mask(scalars[HOLDER_B], KERNEL.mask(scalars[HOLDER_A], KERNEL.hash(items)))
    return [row.tobytes() for row in points]


def test_no_party_ever_holds_both_double_masked_sets(monkeypatch):
    """Record what each party sends, receives and computes; no double-masked point of the other set is there."""
    a, b = numbered(0, 30), numbered(20, 60)
    scalars = scalars_of(external(a, b))
    products: dict[str, list[bytes]] = {HOLDER_A: [], HOLDER_B: []}
    original = type(KERNEL).mask

    def observed(kernel, scalar, points):
        rows = original(kernel, scalar, points)
        owner = next(role for role, value in scalars.items() if value == bytes(scalar))
        products[owner] += [row.tobytes() for row in rows]
        return rows

    p, q = double_masked(scalars, a), double_masked(scalars, b)
    monkeypatch.setattr(type(KERNEL), "mask", observed)
    run = simulate(external(a, b))
    monkeypatch.undo()
    assert set(q) <= set(products[HOLDER_A])  # the control: what each must compute is seen
    assert set(p) <= set(products[HOLDER_B])
    only_p, only_q = set(p) - set(q), set(q) - set(p)
    assert not only_p & set(products[HOLDER_A])
    assert not only_q & set(products[HOLDER_B])
    binding = run.machines[HOLDER_A].task.binding
    tags = {point: sealing._derive(point, binding)[sealing.ITEM_KEY_BYTES :] for point in p + q}
    for role, foreign in ((HOLDER_A, only_p), (HOLDER_B, only_q)):
        seen = held_by(run, role)
        assert not [point for point in foreign if point in seen or tags[point] in seen]


def test_no_double_masked_point_is_ever_sent():
    a, b = numbered(0, 30), numbered(20, 60)
    scalars = scalars_of(external(a, b))
    run = simulate(external(a, b))
    wire = b"".join(_payload(m.body) for _, _, m in run.sent)
    assert not [point for point in double_masked(scalars, a + b[10:]) if point in wire]


def test_no_item_and_no_plain_digest_of_one_is_ever_sent():
    items = [b"canary-%d-of-the-leakage-test" % i for i in range(20)]
    run = simulate(external(items, items[10:] + numbered(0, 9)))
    wire = b"".join(_payload(m.body) for _, _, m in run.sent)
    for item in items:
        assert item not in wire
        assert hashlib.sha256(item).digest() not in wire
        assert KERNEL.hash([item]).tobytes() not in wire


def test_stages_travel_only_where_the_protocol_says():
    run = simulate(external(numbered(0, 5), numbered(2, 9)))
    assert {(s, t, m.stage) for s, t, m in run.sent} == {
        (RECEIVER, HOLDER_B, RECEIVER_KEY),
        (HOLDER_B, RECEIVER, ITEM_KEY),
        (HOLDER_B, HOLDER_A, SEALED),
        (HOLDER_A, HOLDER_B, MASKED),
        (HOLDER_A, RECEIVER, TAGGED_SEALED),
        (HOLDER_B, RECEIVER, TAGGED_KEYS),
    }


def test_the_receiver_cannot_open_what_does_not_match():
    a, b = numbered(0, 10), numbered(8, 20)
    run = simulate(external(a, b))
    receiver = run.machines[RECEIVER]
    keys = [key.tobytes() for key in receiver._keys]
    opened = 0
    item_key = bytes(external(a, b)[HOLDER_B].task.entropy(64)[32:])
    for value in receiver._locked:
        for key in keys:
            try:
                sealing._unlock_one(value.tobytes(), key, sealing.AESGCM(item_key), receiver.task.binding)
            except PeerProtocolError:
                continue
            opened += 1
    assert opened == len(run.outputs[RECEIVER]) == 2


def test_holder_a_cannot_open_what_it_relays():
    run = simulate(external(numbered(0, 10), numbered(0, 10)))
    values = b"".join(m.body.sealed for m in run.between(HOLDER_B, HOLDER_A))
    size = run.between(HOLDER_B, HOLDER_A)[0].body.sealed_bytes
    secrets = scalars_of(external(numbered(0, 10), numbered(0, 10)))
    for value in split(values, size):
        for key in (secrets[HOLDER_A], bytes(32)):
            with pytest.raises(sealing.InvalidTag):
                sealing.AESGCM(key).decrypt(value[:12], value[12:], run.machines[HOLDER_A].task.binding)


def test_two_runs_share_no_row():
    a, b = numbered(0, 30), numbered(20, 60)
    seen: list[set[bytes]] = []
    for seed in range(2):
        run = simulate(external(a, b, seed=seed))
        rows: set[bytes] = set()
        for _, _, message in run.sent:
            match message.body:
                case PointBatch(_, points) | SealedBatch(_, points):
                    rows |= split(points, 32)
                case TagBatch(_, tags):
                    rows |= split(tags, 16)
                case KeyBody(key):
                    rows.add(key)
        seen.append(rows)
    assert len(seen[0]) > 100
    assert not seen[0] & seen[1]


def test_both_relayed_sets_are_shuffled_again():
    a = b = numbered(0, 60)
    run = simulate(external(a, b))
    binding, scalars = run.machines[HOLDER_A].task.binding, scalars_of(external(a, b))
    for source, stage, first, sender in (
        (HOLDER_B, SEALED, HOLDER_A, HOLDER_A),
        (HOLDER_A, MASKED, HOLDER_B, HOLDER_B),
    ):
        came = b"".join(m.body.points for s, _, m in run.sent if (s, m.stage) == (source, stage))
        points = sealing.np.frombuffer(came, sealing.np.uint8).reshape(-1, 32)
        in_order = sealing.tag_and_key(KERNEL, scalars[first], points, binding)[0].tobytes()
        sent = b"".join(
            m.body.tags for m in run.between(sender, RECEIVER) if m.stage in (TAGGED_SEALED, TAGGED_KEYS)
        )
        assert split(sent, 16) == split(in_order, 16)
        assert sent != in_order


@pytest.mark.parametrize(("role", "stage"), [(HOLDER_A, MASKED), (HOLDER_B, SEALED)])
def test_the_first_order_is_not_the_order_of_items(role, stage):
    items = numbered(0, 60)
    scalar = scalars_of(external(items, items))[role]
    run = simulate(external(items, items))
    sent = b"".join(m.body.points for s, _, m in run.sent if (s, m.stage) == (role, stage))
    in_order = KERNEL.mask(scalar, KERNEL.hash(items)).tobytes()
    assert split(sent, 32) == split(in_order, 32)
    assert sent != in_order


def test_no_nonce_comes_twice_under_one_item_key(monkeypatch):
    monkeypatch.setattr("tdn_interop.algo.psi.sets.rows_per_batch", lambda _: 4)
    run = simulate(external([], numbered(0, 10)))
    batches = [m.body for m in run.between(HOLDER_B, HOLDER_A)]
    assert len(batches) == 3
    sealed = b"".join(batch.sealed for batch in batches)
    assert len({sealed[i : i + 12] for i in range(0, len(sealed), batches[0].sealed_bytes)}) == 10


def test_secrets_are_gone_at_the_end():
    run = simulate(external(numbered(0, 5), numbered(3, 9)))
    kept = {role: [len(s) for s in machine._secrets] for role, machine in run.machines.items()}
    assert kept == {HOLDER_A: [32], HOLDER_B: [32, 32], RECEIVER: [sealing.SEED_BYTES, 32]}
    assert not any(any(secret) for machine in run.machines.values() for secret in machine._secrets)


def test_lengths_show_as_one_size_class():
    def width(b):
        run = simulate(external([b"x"], b))
        return {m.body.value_bytes for m in run.between(HOLDER_A, RECEIVER)}

    assert width([b"x"]) == width([b"x" * 30, b"y"]) == {12 + 32 + 16 + 16}
    assert width([b"x" * 31, b"y"]) == width([b"x" * 62]) == {12 + 64 + 16 + 16}


def test_long_items_travel_in_smaller_batches_and_arrive():
    b = [b"%04d" % i + b"z" * 4090 for i in range(400)]
    run = simulate(external(b[395:], b))
    assert len(run.between(HOLDER_B, HOLDER_A)) == 2
    assert run.outputs[RECEIVER] == tuple(b[395:])


def test_an_item_that_fits_no_block_is_refused():
    with pytest.raises(ConfigError) as caught:
        external([], [b"x" * (sealing.LONGEST_ITEM + 1)])
    assert caught.value.reason is Reason.INVALID_ITEM


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def body(change):
    return lambda m: (dataclasses.replace(m, body=change(m.body)),)


def key(change):
    return body(lambda b: KeyBody(change(b.key)))


def sealed(change):
    return body(lambda b: dataclasses.replace(b, sealed=change(b.sealed)))


def values(change):
    return body(lambda b: dataclasses.replace(b, values=change(b.values)))


CASES = {
    "receiver key too short": (RECEIVER_KEY, HOLDER_B, key(lambda k: k[:-1]), Reason.INVALID_REQUEST),
    "receiver key is no lattice key": (RECEIVER_KEY, HOLDER_B, key(lambda k: b"\xff" * len(k)), Reason.INVALID_REQUEST),
    "receiver key not last": (
        RECEIVER_KEY, HOLDER_B, lambda m: (dataclasses.replace(m, last=False),), Reason.BATCH_ORDER,
    ),
    "second item key": (
        ITEM_KEY, RECEIVER, lambda m: (m, dataclasses.replace(m, batch_index=1)), Reason.BATCH_ORDER,
    ),
    "points instead of a key": (
        RECEIVER_KEY, HOLDER_B, body(lambda _: PointBatch(0, b"")), Reason.INVALID_REQUEST,
    ),
    "item key changed": (ITEM_KEY, RECEIVER, key(lambda k: flipped(k, len(k) - 1)), Reason.SEAL_BROKEN),
    "encapsulation changed": (ITEM_KEY, RECEIVER, key(lambda k: flipped(k, 5)), Reason.SEAL_BROKEN),
    "item key cut": (ITEM_KEY, RECEIVER, key(lambda k: k[:7]), Reason.SEAL_BROKEN),
    "nonce changed": (SEALED, HOLDER_A, sealed(lambda v: flipped(v, 3)), Reason.SEAL_BROKEN),
    "sealed item changed": (SEALED, HOLDER_A, sealed(lambda v: flipped(v, 20)), Reason.SEAL_BROKEN),
    "seal cut": (SEALED, HOLDER_A, sealed(lambda v: flipped(v, 59)), Reason.SEAL_BROKEN),
    "sealed items exchanged": (SEALED, HOLDER_A, sealed(lambda v: v[60:120] + v[:60] + v[120:]), None),
    "low-order point": (
        SEALED, HOLDER_A, body(lambda b: dataclasses.replace(b, points=b.points[:-32] + reference.encoded(1))),
        Reason.BAD_POINT,
    ),
    "locked value changed": (TAGGED_SEALED, RECEIVER, values(lambda v: flipped(v, 0)), Reason.SEAL_BROKEN),
    "outer key changed": (TAGGED_KEYS, RECEIVER, values(lambda v: flipped(v, 0)), Reason.SEAL_BROKEN),
    "outer key too short": (
        TAGGED_KEYS, RECEIVER, body(lambda b: TagBatch(b.count, b.tags, b.values[: b.count * 16], 16)),
        Reason.COUNT_MISMATCH,
    ),
    "tag repeated": (
        TAGGED_KEYS, RECEIVER, body(lambda b: dataclasses.replace(b, tags=b.tags[:16] + b.tags[:-16])),
        Reason.INVALID_REQUEST,
    ),
    "stage from the wrong role": (
        MASKED, HOLDER_B, lambda m: (dataclasses.replace(m, stage=ITEM_KEY),), Reason.STATE_CONFLICT,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_broken_rule_has_its_reason_and_no_result_follows(case):
    stage, to, change, reason = case
    items = numbered(0, 8)  # everything matches, so every change of one row is met
    machines = external(items, items)
    results = []

    def tamper(_sender, target, message):
        return change(message) if (target, message.stage) == (to, stage) else (message,)

    if reason is None:  # sealed items are not tied to points: b's order is b's own business
        assert simulate(machines, tamper=tamper).outputs[RECEIVER] == tuple(items)
        return
    with pytest.raises(TdnError) as caught:
        results.append(simulate(machines, tamper=tamper))
    assert caught.value.reason is reason
    assert isinstance(caught.value, PeerProtocolError)
    assert not results
    assert sum(machine.state is State.FAILED for machine in machines.values()) == 1


def test_values_must_keep_one_size_through_a_stage(monkeypatch):
    monkeypatch.setattr("tdn_interop.algo.psi.sets.rows_per_batch", lambda _: 4)
    for stage, cut in (
        (SEALED, lambda b: SealedBatch(b.count, b.points, b.sealed[: b.count * 50], 50)),
        (TAGGED_SEALED, lambda b: TagBatch(b.count, b.tags, b.values[: b.count * 50], 50)),
    ):

        def tamper(_sender, _to, m, stage=stage, cut=cut):
            return body(cut)(m) if (m.stage, m.batch_index) == (stage, 1) else (m,)

        with pytest.raises(PeerProtocolError) as caught:
            simulate(external(numbered(0, 8), numbered(0, 8)), tamper=tamper)
        assert caught.value.reason is Reason.COUNT_MISMATCH
