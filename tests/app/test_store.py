"""The store: transactions, durability, the lock, the schema, and the rows of each concern."""

import asyncio
import dataclasses
import sqlite3
import stat
import threading

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from tdn_interop.app.store import jobs, log, members, receipts, resources, tokens
from tdn_interop.app.store.engine import Store
from tdn_interop.app.store.tables import METADATA
from tdn_interop.errors import ConfigError, Reason, Refused, TdnError, Unavailable

MEMBER = members.MemberRow("a.b.cn", "child", b"k" * 32, "ACTIVE", None, 5)
RESOURCE = resources.ResourceRow(
    "a.b.cn/loans@1", "loans", 1, "/d/loans.csv", "utf-8", ",", ("id", "姓名"), ("id",), 3, 40, "ab" * 32, b"s" * 16,
    7, 2, 1, 0,
)  # fmt: skip
JOB = jobs.JobRow("0a" * 16, "coordinator", "a.b.cn", b"{}", b"f" * 32, "RUNNING", "READY", 10, 11)
TOKEN = tokens.TokenRow(b"t" * 32, "a.b.cn", "child", 1000)


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/node.db"


@pytest.fixture
def store(url):
    store = Store.open(url)
    yield store
    store.close()


async def test_a_transaction_that_raises_leaves_nothing(store):
    def half(connection):
        members.put(connection, MEMBER)
        raise KeyError("then it broke")

    with pytest.raises(KeyError):
        await store.run(half)
    assert await store.run(members.every) == []


async def test_what_was_committed_is_there_after_reopening(url):
    store = Store.open(url)
    await store.run(lambda c: members.put(c, MEMBER))
    store.close()
    store = Store.open(url)
    assert await store.run(members.every) == [MEMBER]
    store.close()


async def test_calls_run_one_after_the_other_on_one_thread(store):
    seen = set()
    running = 0

    def work(connection):
        nonlocal running
        running += 1
        assert running == 1
        seen.add(threading.current_thread())
        count = connection.scalar(sa.select(sa.func.count()).select_from(sa.table("members")))
        members.put(connection, dataclasses.replace(MEMBER, node_id=f"n{count}.cn"))
        running -= 1

    await asyncio.gather(*(store.run(work) for _ in range(30)))
    assert len(seen) == 1
    assert threading.current_thread() not in seen
    assert len(await store.run(members.every)) == 30


async def test_sqlite_is_set_up_for_durability(store):
    def ask(connection):
        return {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "locking_mode")
        }

    # synchronous: 2 is FULL
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "locking_mode": "exclusive"}
    assert await store.run(ask) == wanted


async def test_foreign_keys_are_enforced(store):
    party = jobs.JobPartyRow("ff" * 16, "a.b.cn", "PENDING")
    with pytest.raises(sa.exc.IntegrityError):
        await store.run(lambda c: jobs.put_party(c, party))


def test_the_file_is_for_its_owner_only(store, tmp_path):
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


async def test_a_second_node_on_the_same_database_is_refused_and_does_no_harm(store, url):
    await store.run(lambda c: members.put(c, MEMBER))
    with pytest.raises(Unavailable, match="locked") as error:
        Store.open(url)
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert await store.run(members.every) == [MEMBER]


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path):
    path, content = tmp_path / "node.db", b"this is no database" * 100
    path.write_bytes(content)
    with pytest.raises(Unavailable, match="not a database"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == content


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(Unavailable, match="nowhere"):
        Store.open(f"sqlite:///{tmp_path}/nowhere/node.db")


@pytest.mark.parametrize("wrong", ["no url", "nosuchdb://x/y", "oracle://x/y"])
def test_a_wrong_url_is_a_configuration_error(wrong):
    with pytest.raises(ConfigError) as error:
        Store.open(wrong)
    assert error.value.reason is Reason.CONFIG_INVALID


def test_a_database_of_a_newer_version_is_refused(url, tmp_path):
    Store.open(url).close()
    with sqlite3.connect(tmp_path / "node.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(Unavailable, match="another version"):
        Store.open(url)


async def test_a_full_disk_fails_closed(store):
    """The page limit of SQLite stands in for the disk: the same error code, at a point we choose."""

    def fill(connection):
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages + 4}")
        members.put(connection, dataclasses.replace(MEMBER, record=b"x" * 100_000))

    await store.run(lambda c: members.put(c, MEMBER))
    with pytest.raises(Unavailable, match="full") as error:
        await store.run(fill)
    assert error.value.reason is Reason.STORE_UNAVAILABLE
    assert await store.run(members.every) == [MEMBER]


async def test_a_wrong_statement_is_our_bug_and_not_the_disk(store):
    with pytest.raises(sa.exc.IntegrityError):
        await store.run(lambda c: [tokens.add(c, TOKEN), tokens.add(c, TOKEN)])


async def test_migrations_build_exactly_the_metadata(store):
    def differences(connection):
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA)

    assert await store.run(differences) == []


async def test_the_schema_comparison_would_notice(store):
    """The test above can fail: an extra column is a difference."""

    def differences(connection):
        connection.exec_driver_sql("ALTER TABLE pins ADD COLUMN note TEXT")
        return compare_metadata(MigrationContext.configure(connection), METADATA)

    assert len(await store.run(differences)) == 1


ROWS = [
    (members.put, members.get, ["a.b.cn"], MEMBER, {"state": "SUSPENDED", "record": b"r"}),
    (jobs.put, jobs.get, ["0a" * 16], JOB, {
        "state": "FAILED", "failure": {"reason": "DEADLINE", "metadata": {"waitedS": "3"}}, "facts": {"行": "2"},
        "verdict": b"v", "ended_at_ms": 12,
    }),
]  # fmt: skip


@pytest.mark.parametrize(("put", "get", "key", "row", "changes"), ROWS, ids=["member", "job"])
async def test_writing_replaces_and_writing_again_changes_nothing(store, put, get, key, row, changes):
    assert await store.run(lambda c: get(c, *key)) is None
    for version in (row, dataclasses.replace(row, **changes)):
        for _ in range(2):
            await store.run(lambda c, v=version: put(c, v))
            assert await store.run(lambda c: get(c, *key)) == version


async def test_parties_of_a_job(store):
    rows = [jobs.JobPartyRow(JOB.job_id, name, "PENDING", offer=b"o") for name in ("b.b.cn", "a.b.cn")]

    def work(connection):
        jobs.put(connection, JOB)
        for row in [*rows, dataclasses.replace(rows[0], state="READY", consent=b"c")]:
            jobs.put_party(connection, row)
        return jobs.parties(connection, JOB.job_id), jobs.parties(connection, "ff" * 16)

    found, none = await store.run(work)
    assert [(p.party, p.state, p.consent) for p in found] == [
        ("a.b.cn", "PENDING", None),
        ("b.b.cn", "READY", b"c"),
    ]
    assert none == []


async def test_finding_jobs(store):
    older = dataclasses.replace(JOB, job_id="0b" * 16, state="SUCCEEDED", created_at_ms=1, ended_at_ms=2)

    def work(connection):
        jobs.put(connection, JOB)
        jobs.put(connection, older)
        return (
            jobs.every(connection),
            jobs.unfinished(connection),
            jobs.starting_with(connection, "0a"),
            jobs.starting_with(connection, "0"),
            jobs.starting_with(connection, "%"),
        )

    every, running, one, both, none = await store.run(work)
    assert every == [JOB, older]
    assert running == one == [JOB]
    assert both == [JOB, older]
    assert none == []


async def test_a_version_of_a_resource_never_changes(store):
    await store.run(lambda c: resources.add(c, RESOURCE))
    await store.run(lambda c: resources.add(c, RESOURCE))
    with pytest.raises(ConfigError) as error:
        await store.run(lambda c: resources.add(c, dataclasses.replace(RESOURCE, rows=4)))
    assert error.value.reason is Reason.ALREADY_EXISTS
    second = dataclasses.replace(RESOURCE, id="a.b.cn/loans@2", version=2)
    await store.run(lambda c: resources.add(c, second))
    assert await store.run(resources.every) == [RESOURCE, second]
    assert await store.run(lambda c: resources.latest(c, "loans")) == second
    assert await store.run(lambda c: resources.latest(c, "other")) is None
    assert await store.run(lambda c: resources.get(c, "a.b.cn/loans@1")) == RESOURCE


async def test_the_first_identity_key_stays(store):
    for _ in range(2):
        await store.run(lambda c: members.pin(c, "a.b.cn", b"k" * 32, 1))
    with pytest.raises(Refused) as error:
        await store.run(lambda c: members.pin(c, "a.b.cn", b"K" * 32, 2))
    assert error.value.reason is Reason.IDENTITY_MISMATCH
    assert await store.run(lambda c: members.pinned(c, "a.b.cn")) == b"k" * 32
    assert await store.run(lambda c: members.pinned(c, "b.b.cn")) is None


@pytest.mark.parametrize(
    "wrong",
    [(b"x" * 32, "a.b.cn", "child", 9), (b"t" * 32, "b.b.cn", "child", 9), (b"t" * 32, "a.b.cn", "hub", 9),
     (b"t" * 32, "a.b.cn", "child", 1000)],
    ids=["secret", "node", "role", "time"],
)  # fmt: skip
async def test_a_token_is_good_for_what_it_says(store, wrong):
    await store.run(lambda c: tokens.add(c, TOKEN))
    with pytest.raises(Refused) as error:
        await store.run(lambda c: tokens.spend(c, *wrong))
    assert error.value.reason is Reason.TOKEN_INVALID
    await store.run(lambda c: tokens.spend(c, b"t" * 32, "a.b.cn", "child", 999))


def test_a_token_is_spent_once_even_by_threads_with_connections_of_their_own(tmp_path):
    """Without the store's one thread and its lock: the statement alone decides."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/shared.db", connect_args={"timeout": 30})
    METADATA.create_all(engine)
    with engine.begin() as connection:
        tokens.add(connection, TOKEN)
    barrier, outcomes = threading.Barrier(8), []

    def spend():
        barrier.wait()
        try:
            with engine.begin() as connection:
                tokens.spend(connection, b"t" * 32, "a.b.cn", "child", 5)
            outcomes.append("spent")
        except TdnError as error:
            outcomes.append(error.reason.name)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert sorted(outcomes) == ["TOKEN_INVALID"] * 7 + ["spent"]


async def test_log_rows(store):
    leaves = [
        log.LeafRow(n, b"leaf%d" % n, b"h%d" % n, b"r", "k", "s" if n else "t", n * 10) for n in range(3)
    ]

    def work(connection):
        assert log.last(connection) == (0, 0)
        for leaf in leaves:
            log.add_leaf(connection, leaf)
        return (
            log.last(connection), list(log.hashes(connection, 1)), list(log.leaves(connection)),
            log.about(connection, "s"), log.leaf(connection, 2), log.leaf(connection, 3),
        )  # fmt: skip

    assert await store.run(work) == ((3, 20), [b"h1", b"h2"], leaves, leaves[1:], leaves[2], None)


async def test_heads_and_anchors(store):
    def work(connection):
        assert log.head(connection, "a.cn") is None
        assert log.last_anchor(connection, "a.cn") is None
        for size in (9, 10):
            log.put_head(connection, log.HeadRow("a.cn", size, b"h"))
            log.put_anchor(connection, log.AnchorRow("a.cn", size, b"r", size - 1))
        log.put_anchor(connection, log.AnchorRow("b.cn", 99, b"r", 1))
        return log.head(connection, "a.cn"), log.last_anchor(connection, "a.cn")

    assert await store.run(work) == (log.HeadRow("a.cn", 10, b"h"), log.AnchorRow("a.cn", 10, b"r", 9))


async def test_receipts(store):
    rows = [receipts.ReceiptRow(b"t" * 16, relay, b"x") for relay in ("b.cn", "a.cn")]

    def work(connection):
        for row in rows:
            assert receipts.add(connection, row)
        assert not receipts.add(connection, receipts.ReceiptRow(b"t" * 16, "a.cn", b"another"))
        return receipts.of_tunnel(connection, b"t" * 16), receipts.of_tunnel(connection, b"u" * 16)

    assert await store.run(work) == (rows[::-1], [])
