"""A lab as its user has it: the command in a process of its own, everything it makes below one folder."""

import json
import os
import pathlib
import subprocess
import time
from dataclasses import dataclass

from tests.app.cli.fake import COMMAND

PATIENCE_S = 60


@dataclass
class User:
    """Somebody with a shell in `folder`; temporary files of commands go there, too."""

    folder: pathlib.Path

    @property
    def environment(self):
        hidden = {"NO_COLOR", "CI", "TDN_CONFIG"}
        inherited = {k: v for k, v in os.environ.items() if k not in hidden}  # noqa: TID251  handed on
        return inherited | {"TMPDIR": str(self.temporary)}

    @property
    def temporary(self):
        (self.folder / "tmp").mkdir(exist_ok=True)
        return self.folder / "tmp"

    def start(self, *words):
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*COMMAND, *map(str, words)], cwd=self.folder, env=self.environment, stdout=pipe, stderr=pipe, text=True
        )  # fmt: skip

    def tdn(self, *words):
        """(exit code, stdout, stderr) of a command."""
        process = self.start(*words)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def json(self, *words):
        """The document a command prints; it must succeed."""
        code, out, err = self.tdn(*words, "--json")
        assert code == 0, err
        return json.loads(out)

    def error(self, *words):
        """(exit code, error document) of a command that must fail."""
        code, out, err = self.tdn(*words, "--json")
        assert (code != 0, out) == (True, ""), out
        return code, json.loads(err)["error"]


def processes(folder):
    """Command lines that name `folder`, by pid; this test's own commands are not among them."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                words = []  # it ended meanwhile
            if any(word.startswith(f"{folder}/") for word in words):
                found[int(entry.name)] = words
    return found


def until(condition):
    """The value of `condition` as soon as it has one."""
    ends = time.monotonic() + PATIENCE_S
    while time.monotonic() < ends:
        if value := condition():
            return value
        time.sleep(0.01)
    raise AssertionError("it did not happen")
