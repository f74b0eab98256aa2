"""Resources: versions that never change, names that only their owner can resolve, contents nobody else can guess."""

import hashlib

import pytest

from tdn_interop.app.data.table import CsvFormat
from tdn_interop.app.evidence.log import EvidenceLog
from tdn_interop.app.evidence.statements import commitment
from tdn_interop.app.resources import Resources, resource_commitment
from tdn_interop.app.store.engine import Store
from tdn_interop.errors import Reason, TdnError
from tests.app.evidence_mesh import identity

NODE = "bank-a.cn"


@pytest.fixture
async def log():
    store = Store.open("sqlite://")
    yield await EvidenceLog.open(store, identity(NODE))
    store.close()


@pytest.fixture
def resources(log):
    return Resources(NODE, log.store, log)


@pytest.fixture
def table(tmp_path):
    file = tmp_path / "loans.csv"
    file.write_text("id,amount\n1,10\n2,20\n2,30\n,40\n")
    return file


async def register(resources, file, name="loans", form=CsvFormat(), keys=("id",)):
    return await resources.register(name, file, form, keys)


async def test_what_is_registered(resources, table):
    row = await register(resources, table)
    assert (row.id, row.version, row.columns, row.keys) == (f"{NODE}/loans@1", 1, ("id", "amount"), ("id",))
    assert (row.rows, row.distinct_keys, row.duplicate_rows, row.empty_rows) == (4, 2, 1, 1)
    assert (row.size_bytes, row.sha256) == (
        table.stat().st_size,
        hashlib.sha256(table.read_bytes()).hexdigest(),
    )


async def test_the_same_again_is_the_same_version(resources, table):
    first = await register(resources, table)
    assert await register(resources, table) == first
    assert await resources.every() == [first]


async def test_whatever_differs_is_a_new_version(resources, table):
    first = await register(resources, table)
    second = await register(resources, table, keys=("id", "amount"))
    table.write_text("id,amount\n1,10\n")
    third = await register(resources, table, keys=("id", "amount"))
    assert [row.version for row in (first, second, third)] == [1, 2, 3]
    assert await resources.find(first.id) == first
    assert first.sha256 != third.sha256


@pytest.mark.parametrize("text", ["loans", f"{NODE}/loans", f"{NODE}/loans@2"])
async def test_found_by(resources, table, text):
    await register(resources, table)
    newest = await register(resources, table, keys=("amount",))
    assert await resources.find(text) == newest


@pytest.mark.parametrize("text", ["cards", f"{NODE}/loans@2", "bank-b.cn/loans", "bank-b.cn/loans@1"])
async def test_not_found(resources, table, text):
    """Another node's resource and one that does not exist look alike."""
    await register(resources, table)
    with pytest.raises(TdnError) as error:
        await resources.find(text)
    assert (error.value.reason, error.value.message) == (
        Reason.RESOURCE_UNKNOWN,
        f"there is no resource {text} here",
    )


@pytest.mark.parametrize("name", ["", "Loans", "a/b", "a@1", "../x", "a" * 200])
async def test_bad_names(resources, table, name):
    with pytest.raises(TdnError) as error:
        await register(resources, table, name)
    assert error.value.exit_code in {3, 6}
    assert await resources.every() == []


async def test_the_log_holds_a_commitment_and_not_the_digest(resources, log, table):
    """The digest of a small table can be guessed; the commitment is salted, anew for every version."""
    row = await register(resources, table)
    again = await register(resources, table, "copy")
    assert resource_commitment(row) == commitment(row.salt, bytes.fromhex(row.sha256))
    assert resource_commitment(row) != resource_commitment(again)
    event = (await log.event(0)).statement
    assert resource_commitment(row).hex().encode() in event
    assert row.sha256.encode() not in event
    assert bytes.fromhex(row.sha256) not in event
    assert row.id.encode() in event
