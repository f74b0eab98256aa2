"""A node that sends numbered parcels to one peer and keeps what it gets: a process to be killed.

Run as `python -m tests.app.post_process CONFIG PEER COUNT`. Its own database tells how far it has come, so it goes
on where an earlier process was killed.
"""

import asyncio
import sys
from pathlib import Path

import sqlalchemy as sa

from tdn_interop.app.node import running
from tdn_interop.app.post.post import Post
from tdn_interop.app.store import post as table
from tdn_interop.config import load_config

TABLES = (
    "CREATE TABLE IF NOT EXISTS sent (number INTEGER PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS got (place INTEGER PRIMARY KEY, peer TEXT, body BLOB)",
)
GOT, COMPLETE = "-- got", "-- complete"
KEEP = sa.text("INSERT INTO got (peer, body) VALUES (:peer, :body)")


async def consume(post, parcel):
    """The effect of a parcel and its end are one transaction."""

    def effect(connection):
        connection.execute(KEEP, {"peer": parcel.peer, "body": parcel.body})
        post.done_in(connection, parcel)

    await post._arrivals._store.run(effect)
    print(GOT, flush=True)


async def run(config, peer, count):
    Post._consume = consume
    async with running(config) as node:
        post, store = node.mesh.post, node.mesh._store

        def send(connection):
            number = connection.scalar(sa.text("SELECT count(*) FROM sent"))
            if number < count:
                connection.execute(sa.text("INSERT INTO sent VALUES (:number)"), {"number": number})
                post.send_in(connection, peer, b"%d" % number, 600)
            return number

        def left(connection):
            return (
                count
                - connection.scalar(sa.text("SELECT count(*) FROM got"))
                + len(table.out_peers(connection))
            )

        while await store.run(send) < count:
            post.wake(peer)
        while await store.run(left):
            await asyncio.sleep(0.05)
        print(COMPLETE, flush=True)
        await asyncio.Event().wait()


def prepare(path):
    """Make the tables while nobody runs: `consume` may be called at once."""
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        for table in TABLES:
            connection.exec_driver_sql(table)
    engine.dispose()


if __name__ == "__main__":
    asyncio.run(run(load_config(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3])))
