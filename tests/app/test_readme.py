"""The README, followed as a new user would: every command block in it runs, in order, in one shell."""

import pathlib
import re
import subprocess
import sys

import pytest

from tdn_interop.app.telemetry import Metrics
from tests.app.lab_world import User, processes
from tests.mesh import free_address

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "docs" / "operate.md"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# The targets of make are those of the repository; that they are there is shown, what they do is tested elsewhere.
SHELL = """\
set -euo pipefail
PATH="{bin}:$PATH"
make() {{ command make --dry-run -C "{root}" "$@" > /dev/null; }}
"""


def blocks(page):
    return FENCE.findall(page.read_text("utf-8"))


def follow(page, folder):
    """Run every block of a page in `folder`; (exit code, stdout, stderr)."""
    prelude = SHELL.format(bin=pathlib.Path(sys.executable).parent, root=ROOT)
    script = prelude + "".join(text for language, text in blocks(page) if language == "sh")
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=User(folder).environment, check=False, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_looks_like_a_command_is_one(page):
    assert {language for language, _ in blocks(page)} <= {"sh", "toml"}


def test_the_two_commands_come_first():
    assert re.findall(r"^make \w+", blocks(PAGES[0])[0][1], re.MULTILINE) == ["make demo", "make test"]


def test_the_readme(tmp_path):
    code, out, err = follow(PAGES[0], tmp_path)
    assert code == 0, err
    result = tmp_path / "lab" / "research.shandong.cn" / "results" / "flying-owners.csv"
    assert result.read_text().split() == ["phone", "13900000001", "13900000003"]
    assert result.read_text() in out
    assert (tmp_path / "received.csv").read_bytes() == (tmp_path / "passengers.csv").read_bytes()
    assert "The evidence holds." in err
    assert processes(tmp_path) == {}


LABELS = {"grpc_type", "grpc_service", "grpc_method", "grpc_code"}
FREE = re.compile(r"127\.0\.0\.1:70\d\d")


def test_the_operators_page(tmp_path):
    """As it stands, but for ports that another process of this machine may have."""
    text = PAGES[1].read_text("utf-8")
    for address in sorted(set(FREE.findall(text))):
        text = text.replace(address, free_address())
    (tmp_path / "page.md").write_text(text)
    code, out, err = follow(tmp_path / "page.md", tmp_path)
    logs = "".join(file.read_text() for file in tmp_path.glob("*.log"))
    assert code == 0, err + logs
    assert "bank-a.hebei.cn" in out
    assert processes(tmp_path) == {}
    for node in ("cn", "hebei", "bank-a"):
        documented = set(re.findall(r"`([\w.-]+)`", text.split("## Files")[1].split("## Metrics")[0]))
        assert {path.name for path in (tmp_path / node).iterdir()} <= documented
    assert {"identity.key", "ca.key", "node.db"} <= {path.name for path in (tmp_path / "hebei").iterdir()}


def test_every_metric_is_documented():
    page = PAGES[1].read_text("utf-8").split("## Metrics")[1].split("## Logs")[0]
    suffix = {"counter": "_total"}
    served = {family.name + suffix.get(family.type, "") for family in Metrics().registry.collect()}
    assert set(re.findall(r"`((?:tdn|grpc)_(?:server_|client_)?\w+_\w+)`", page)) - LABELS == served


def test_the_architecture_page_names_what_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = set(re.findall(r"(?<![\w/])(?:transport|algo|app|tdn_interop)/[\w/]*(?:\.py|/|(?=\s))", page))
    assert len(named) > 20
    missing = [
        name for name in named if not any((ROOT / root / name).exists() for root in ("", "tdn_interop"))
    ]
    assert missing == []
