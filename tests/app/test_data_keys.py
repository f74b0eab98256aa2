"""Keys: one normal form, injective bytes, and no row dropped in silence."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdn_interop.app.data.keys import (
    MAX_KEY_BYTES,
    UNUSED,
    Normalisation,
    decode_key,
    encode_key,
    load_keys,
)
from tdn_interop.app.data.table import CsvFormat
from tdn_interop.errors import ConfigError, PeerProtocolError, Reason

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "normalisation.json").read_text())
SAMPLES = Path(str(files("tdn_interop.app.data") / "samples"))

rules = st.builds(
    Normalisation,
    trim=st.booleans(),
    case=st.sampled_from(["keep", "upper", "lower"]),
    unicode=st.sampled_from(["NFC", "NFKC"]),
)
parts = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=5)


@pytest.fixture
def load(tmp_path):
    def load(rows: str, columns=("id",), rule=Normalisation(), form=CsvFormat(), expected=None):
        path = tmp_path / "table.csv"
        path.write_bytes(rows.encode(form.encoding))
        return load_keys(path, form, columns, rule, expected)

    return load


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["note"])
def test_known_answers(vector):
    rule = Normalisation(**VECTORS["rules"][vector["rule"]])
    found = [rule.apply(value) for value in vector["values"]]
    assert found == (vector["normal"] or [None])
    if vector["key"]:
        assert encode_key(found).hex() == vector["key"]
        assert decode_key(bytes.fromhex(vector["key"])) == tuple(vector["normal"])


@given(rules, st.text(max_size=20))
def test_a_normal_form_is_its_own_normal_form(rule, value):
    normal = rule.apply(value)
    if normal is not None:
        assert rule.apply(normal) == normal


@given(parts, parts)
def test_the_encoding_is_injective(one, other):
    assert decode_key(encode_key(one)) == tuple(one)
    assert (encode_key(one) == encode_key(other)) == (one == other)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_key_or_refused(data):
    try:
        columns = decode_key(data)
    except PeerProtocolError:
        return
    assert encode_key(columns) == data


def test_a_key_of_a_peer_is_bounded():
    assert decode_key(encode_key(["x" * (MAX_KEY_BYTES - 2)]))
    with pytest.raises(PeerProtocolError):
        decode_key(encode_key(["x" * (MAX_KEY_BYTES - 1)]))


def test_distinct_keys_in_file_order_with_the_place_of_each_row(load):
    keys = load("id,v\nb,1\n a,2\nB,3\n,4\na,5\n", rule=Normalisation(case="lower"))
    assert keys.items == [encode_key("b"), encode_key("a")]
    assert list(keys.item_of_row) == [0, 1, 0, UNUSED, 1]
    assert (keys.rows, keys.duplicates, keys.empties) == (5, 2, 1)


def test_columns_are_taken_in_the_order_of_the_key_not_of_the_file(load):
    keys = load("a,b,c\n1,2,3\n4,,6\n", ["c", "b"])
    assert keys.items == [encode_key(["3", "2"])]
    assert keys.empties == 1  # one empty column makes the key empty


def test_the_samples_intersect_in_3316_keys():
    rule = Normalisation(case="upper")
    one, other = (
        load_keys(SAMPLES / name, CsvFormat(), ["tailnum"], rule)
        for name in ("airline_operations.csv", "aircraft_registry.csv")
    )
    assert len(set(one.items) & set(other.items)) == 3316


@pytest.mark.parametrize(
    ("bad", "form"),
    [
        ("\u0378", CsvFormat()),
        ("\ufdd0", CsvFormat()),
        ("x" * MAX_KEY_BYTES, CsvFormat()),
        ("\u6c34" * (MAX_KEY_BYTES // 2), CsvFormat()),
        ("x" * 70_000, CsvFormat()),
        ("\ud800", CsvFormat("utf-7")),
    ],
)
def test_invalid_keys_are_counted_and_refused_not_dropped(load, bad, form):
    with pytest.raises(ConfigError) as caught:
        load(f"id,v\na,1\n{bad},2\nb,3\n{bad},4\n", form=form)
    error = caught.value
    assert (error.reason, error.requirement) == (Reason.INVALID_ITEM, "TDN-A-PSI-10")
    assert error.message == "2 of 4 rows have an invalid key, the first at line 3"
    assert error.metadata == {"invalidRows": "2", "firstLine": "3"}


def test_an_invalid_value_beside_the_key_does_not_matter(load):
    assert load("id,v\na,\u0378\n").rows == 1


def test_no_usable_key_is_an_empty_set(load):
    with pytest.raises(ConfigError) as caught:
        load("id,v\n ,1\n\u3000,2\n")
    assert (caught.value.reason, caught.value.requirement) == (Reason.EMPTY_SET, "TDN-F-RES-07")


def test_only_the_registered_content_is_used(load):
    rows = "id\na\n"
    assert load(rows, expected=hashlib.sha256(rows.encode()).hexdigest()).rows == 1
    with pytest.raises(ConfigError, match="DIGEST_MISMATCH"):
        load(rows, expected=hashlib.sha256(b"").hexdigest())
