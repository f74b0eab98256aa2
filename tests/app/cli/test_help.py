"""Help of every command; every example in it runs."""

import shlex
import subprocess
import sys

import pytest

from tdn_interop.app import cli
from tdn_interop.app.cli import adapters
from tests.app.cli.fake import COMMAND, points


def commands():
    """(words, command) of every command and group."""
    root = cli.typer.main.get_command(cli.app)
    found = [((), root)]
    for words, command in found:
        children = getattr(command, "commands", {})
        found += [((*words, name), child) for name, child in children.items()]
    return found


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_of_every_command(words, tdn):
    code, out, _ = tdn(*words, "--help")
    assert code == 0
    assert "Usage: tdn" in out


EXAMPLES = {words: command.epilog for words, command in commands() if not hasattr(command, "commands")}


def test_every_command_has_an_example():
    assert [
        words for words, epilog in EXAMPLES.items() if not (epilog or "").startswith("Example: tdn ")
    ] == []


# These start whole meshes and have tests of their own.
LONG = ("lab", "demo")


@pytest.mark.parametrize("words", [words for words in EXAMPLES if words[0] not in LONG], ids=" ".join)
def test_examples_run(words, node, tdn, folder, modules, bundle, monkeypatch):
    monkeypatch.setattr(adapters, "entry_points", points("json:loads"))
    if words == ("job", "bundle"):
        (folder / "job.bundle").unlink()
    (folder / "bank-a").symlink_to(".")
    line = shlex.split(EXAMPLES[words].removeprefix("Example: tdn "))
    assert tuple(line[: len(words)]) == words
    assert tdn(*line)[0] == 0


def test_help_is_quick():
    script = (
        "import sys; from tdn_interop.app.cli import run; run(['--help'])\n"
        "sys.exit(','.join({'grpc', 'pydantic', 'sqlalchemy', 'cryptography', 'numpy'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_installed_command_is_this_one():
    done = subprocess.run([*COMMAND, "job", "nonsense"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "nonsense" in done.stderr
