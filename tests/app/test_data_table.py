"""Reading CSV files: every way a file can differ from its declaration has one clear sentence."""

import errno
import hashlib
import os
from importlib.resources import files
from pathlib import Path

import pytest

from tdn_interop.app.data.profile import Profile, inspect
from tdn_interop.app.data.table import MAX_COLUMNS, MAX_ROW_CHARS, CsvFormat, open_table
from tdn_interop.errors import ConfigError, Reason

SECRET = "S3CRET"  # stands for a value; must be in no message
SAMPLES = Path(str(files("tdn_interop.app.data") / "samples"))


@pytest.fixture
def csv_file(tmp_path):
    def write(content: bytes | str) -> Path:
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path: Path, form: CsvFormat = CsvFormat(), expected: str | None = None):
    with open_table(path, form, expected) as table:
        return table.columns, list(table)


def refusal(path: Path, form: CsvFormat = CsvFormat(), keys=("id",)) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        inspect(path, form, keys)
    assert SECRET not in caught.value.message
    assert str(path.parent) not in caught.value.message
    return caught.value


def test_the_samples_are_read_whole():
    operations = inspect(SAMPLES / "airline_operations.csv", CsvFormat(), ["tailnum"])
    registry = inspect(SAMPLES / "aircraft_registry.csv", CsvFormat(), ["tailnum"])
    content = (SAMPLES / "aircraft_registry.csv").read_bytes()
    columns = ("tailnum", "year", "type", "manufacturer", "model", "engines", "seats")
    digest = hashlib.sha256(content).hexdigest()
    assert registry == Profile(columns, 3322, len(content), digest, 3322, 0, 0)
    assert (operations.rows, operations.distinct_keys) == (4037, 4037)


def test_profile_counts_distinct_duplicate_and_empty_keys(csv_file):
    path = csv_file("id,v\na,1\nb,2\na,3\n ,4\na ,5\n")
    found = inspect(path, CsvFormat(), ["id"])
    assert (found.rows, found.distinct_keys, found.duplicate_rows, found.empty_rows) == (5, 2, 2, 1)


def test_quotes_line_ends_blank_lines_and_mark_are_read(csv_file):
    path = csv_file(b'\xef\xbb\xbfid,v\r\n"a,""1""","x\r\ny"\r\n\r\nb,\r\n\n')
    assert read(path) == (("id", "v"), [['a,"1"', "x\r\ny"], ["b", ""]])


@pytest.mark.parametrize("encoding", ["utf-8", "UTF_8", "utf8", "utf-16", "gb18030", "latin-1"])
def test_declared_encoding_is_used(csv_file, encoding):
    path = csv_file("id;v\né;1\n".encode(encoding))
    assert read(path, CsvFormat(encoding, ";")) == (("id", "v"), [["é", "1"]])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        (f"id,v\na,1\n{SECRET}\n", "line 3 has 1 fields, the header has 2"),
        (f"id,v\na,1\nb,2,{SECRET}\n", "line 3 has 3 fields, the header has 2"),
        (f'id,v\n"a\nb",1\n{SECRET}\n', "line 4 has 1 fields"),
        ("id;v\na;1\n", "only one column with delimiter ','; the header holds ';'"),
        ("id\tv\na\t1\n", "the header holds '\\t'"),
        ("name,v\na,1\n", "no column 'id'; there are: 'name', 'v'"),
        ("id,v,id\na,1,2\n", "several columns are named 'id'"),
        (f"id,v\n{SECRET}\0,1\n", "line 2 holds a NUL"),
        (f'id,v\na,"{SECRET}"x\n', "line 2: "),
        (f'id,v\na,"{SECRET}\n', "line 2: "),
        ("id,v\n" + f"a,{SECRET}" + "x" * 131_073 + "\n", "line 2: field larger than"),
        ("id," + ",".join(f"c{i}" for i in range(MAX_COLUMNS)) + "\n", f"{MAX_COLUMNS + 1} columns"),
        ("id,v\na," + "x" * MAX_ROW_CHARS + "\n", "the row at line 2 is longer than"),
        ("id,v\na," + '"x\ny",' * (MAX_ROW_CHARS // 6 + 1) + "\n", "is longer than"),
    ],
)
def test_a_file_that_is_not_as_declared_is_refused_in_one_sentence(csv_file, content, says):
    error = refusal(csv_file(content))
    assert (error.reason, error.requirement) == (Reason.INPUT_INVALID, "TDN-F-RES-05")
    assert says in error.message


def test_a_column_name_may_hold_another_delimiter(csv_file):
    assert read(csv_file("a;b,c|d\n1,2\n")) == (("a;b", "c|d"), [["1", "2"]])


def test_the_longest_row_that_is_allowed_is_read(csv_file):
    fields = ["x" * 100_000] * 10
    path = csv_file(",".join(f"c{i}" for i in range(10)) + "\n" + (",".join(fields) + "\n") * 3)
    assert len(read(path)[1]) == 3


@pytest.mark.parametrize(("before", "offset"), [(b"id,v\n", 5), (b"id,v\n" + b"a,1\n" * 40_000, 160_005)])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_wrong_encoding_is_told_with_its_byte_offset(csv_file, before, offset, mark):
    error = refusal(csv_file(mark + before + b"\xff,1\n"))
    assert f"byte {offset + len(mark)} is not utf-8" in error.message


def test_a_truncated_character_at_the_end_is_refused(csv_file):
    assert "byte 7 is not utf-8" in refusal(csv_file(b"id,v\na,\xe4\xbd")).message


@pytest.mark.parametrize(
    ("form", "says"),
    [
        (CsvFormat("no-such-codec"), "no text encoding 'no-such-codec'"),
        (CsvFormat("base64"), "no text encoding 'base64'"),
        (CsvFormat("utf\0-8"), "no text encoding"),
        (CsvFormat(delimiter=",,"), "the delimiter must be one character"),
        (CsvFormat(delimiter=""), "the delimiter must be one character"),
    ],
)
def test_an_unusable_format_is_refused(csv_file, form, says):
    error = refusal(csv_file("id,v\na,1\n"), form)
    assert error.reason is Reason.INPUT_INVALID
    assert says in error.message


def test_no_key_column_is_refused(csv_file):
    assert "no column" in refusal(csv_file("id,v\na,1\n"), keys=()).message


def test_a_header_without_rows_is_an_empty_set(csv_file):
    error = refusal(csv_file("id,v\n\n"))
    assert (error.reason, error.requirement) == (Reason.EMPTY_SET, "TDN-F-RES-07")


def test_missing_directory_pipe_and_nonsense_paths_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "No such file" in refusal(tmp_path / "absent.csv").message
    assert "is not a regular file" in refusal(tmp_path).message
    assert "is not a regular file" in refusal(tmp_path / "pipe").message
    assert "null byte" in refusal(tmp_path / "a\0b").message


def test_an_unreadable_file_is_refused(csv_file, monkeypatch):
    path = csv_file("id\na\n")

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, whom no mode stops
    assert "Permission denied" in refusal(path).message


def test_a_changed_file_is_told_as_such_and_not_as_what_the_change_broke(csv_file):
    path = csv_file("broken;header\n")
    with pytest.raises(ConfigError) as caught:
        read(path, expected=hashlib.sha256(b"id,v\na,1\n").hexdigest())
    assert (caught.value.reason, caught.value.requirement) == (Reason.DIGEST_MISMATCH, "TDN-F-RES-06")


def test_a_file_that_changes_while_it_is_read_is_refused(csv_file):
    content = "id,v\n" + "aaaa,1\n" * 10_000
    path = csv_file(content)
    with (
        pytest.raises(ConfigError, match="DIGEST_MISMATCH"),
        open_table(path, CsvFormat(), hashlib.sha256(content.encode()).hexdigest()) as table,
    ):
        path.write_text(content.replace("a", "b"))
        list(table)
