"""Two ends of the post under every mixture of parcels, loss, absence and kills at any await or commit."""

import asyncio
import tempfile

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tdn_interop.app.post import post_sender
from tests.app.post_world import revive, settle, two

fuses = st.one_of(st.none(), st.integers(0, 25))
steps = st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), fuses, fuses, st.booleans()), max_size=6)


losses = st.frozensets(st.integers(0, 40), max_size=12)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, lost_a=losses, lost_b=losses)
def test_every_parcel_is_done_once_in_order(monkeypatch, steps, lost_a, lost_b):
    monkeypatch.setattr(post_sender, "RECEIPT_S", 0.02)
    asyncio.run(play(steps, lost_a, lost_b))


async def play(steps, lost_a, lost_b):
    with tempfile.TemporaryDirectory() as folder:
        async with two(folder) as (a, b):
            a.lost, b.lost = lost_a, lost_b
            sent = {"a": [], "b": []}
            for who, count, fuse_a, fuse_b, absent in steps:
                sender, receiver = (a, b) if who == "a" else (b, a)
                await revive(a, b)
                for end, fuse in ((a, fuse_a), (b, fuse_b)):
                    end.fuse = None if fuse is None else end.points + fuse
                bodies = [b"%s %d" % (who.encode(), len(sent[who]) + i) for i in range(count)]
                receiver.online = not absent
                await sender.submit(receiver.me, *bodies)
                sent[who] += bodies
                for _ in range(count):
                    await asyncio.sleep(0)
            a.online = b.online = True
            for end, other in ((a, b), (b, a)):
                end.fuse = None
                end.post.wake(other.me)
            await settle(a, b)
            assert await b.done() == sent["a"]
            assert await a.done() == sent["b"]
