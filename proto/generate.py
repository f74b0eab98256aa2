"""Write what follows from other files: the enum of reasons, and the stubs under tdn_interop/_pb.

The same input gives the same bytes. The import rewrite makes the stubs importable inside our package
without a second top-level package; descriptor names stay `tdn/...`, so other languages see no trace.
`generate.py` writes, `generate.py --check` fails when something would change.
"""

import pathlib
import re
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

from tdn_interop.reasons import Reason

ROOT = pathlib.Path(__file__).resolve().parent
TARGET = ROOT.parent / "tdn_interop" / "_pb"
REASON_ENUM = ROOT / "tdn" / "common" / "v1" / "error_reason.proto"
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
IMPORT = re.compile(r"^(\s*)(from|import) tdn\.", re.MULTILINE)

ENUM_HEAD = """\
// Generated from tdn_interop/reasons.py by proto/generate.py. Do not edit.
syntax = "proto3";

package tdn.common.v1;

// Why something was refused. Messages carry the name without its prefix, such as `NO_ROUTE`.
// Numbers are permanent; docs/reference/errors.md explains each one.
enum ErrorReason {
  // Never sent.
  ERROR_REASON_UNSPECIFIED = 0;
"""


def reason_enum() -> str:
    """The text of error_reason.proto: one value per row of the reason table."""
    rows = sorted(Reason, key=lambda reason: reason.value.number)
    values = [f"  // {r.value.summary[0]}\n  ERROR_REASON_{r.name} = {r.value.number};\n" for r in rows]
    return ENUM_HEAD + "".join(values) + "}\n"


def stubs(reasons: str) -> dict[pathlib.Path, str]:
    """Path under TARGET -> text of every stub, made by the pinned generator."""
    with tempfile.TemporaryDirectory() as scratch:
        source, out = pathlib.Path(scratch, "source"), pathlib.Path(scratch, "out")
        files = {p.relative_to(ROOT): p.read_text() for p in (ROOT / "tdn").rglob("*.proto")}
        files[REASON_ENUM.relative_to(ROOT)] = reasons
        for name, text in files.items():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_text(text)
        out.mkdir()
        run_protoc(source, out, sorted(str(name) for name in files))
        made = {p.relative_to(out): IMPORT.sub(r"\1\2 tdn_interop._pb.tdn.", p.read_text())
                for p in out.rglob("*.py*")}  # fmt: skip
    folders = {parent for path in made for parent in path.parents}
    return made | {folder / "__init__.py": "" for folder in folders}


def run_protoc(source: pathlib.Path, out: pathlib.Path, files: list[str]) -> None:
    """Run protoc over `files`, names below `source`; the process ends when it complains."""
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    plugins = [f"--plugin={name}={pathlib.Path(sys.executable).parent / name}" for name in PLUGINS]
    outputs = [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    code = protoc.main(["protoc", f"-I{source}", f"-I{well_known}", *plugins, *outputs, *files])
    if code:
        sys.exit(code)


def wanted() -> dict[pathlib.Path, str]:
    """Every generated file and its text."""
    reasons = reason_enum()
    return {REASON_ENUM: reasons} | {TARGET / path: text for path, text in stubs(reasons).items()}


def main() -> None:
    """Write, or check. Files that stay the same are not touched: somebody may be importing them."""
    files = wanted()
    kept = [p for p in TARGET.rglob("*.py*") if p.is_file() and "__pycache__" not in p.parts]
    stale = [p for p in kept if p not in files]
    changed = [p for p, text in files.items() if not p.is_file() or p.read_text() != text]
    if "--check" in sys.argv:
        wrong = sorted(str(p.relative_to(ROOT.parent)) for p in [*stale, *changed])
        sys.exit("out of date, run `make gen`: " + ", ".join(wrong) if wrong else 0)
    for path in stale:
        path.unlink()
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])


if __name__ == "__main__":
    main()
