"""Write the stubs under tdn_interop/_pb from proto/tdn, the same bytes every time.

The import rewrite makes the stubs importable inside our package without a second
top-level package; descriptor names stay `tdn/...`, so other languages see no trace.
"""

import pathlib
import re
import shutil
import sys
import tempfile

import grpc_tools
from grpc_tools import protoc

ROOT = pathlib.Path(__file__).resolve().parent
TARGET = ROOT.parent / "tdn_interop" / "_pb"
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")
IMPORT = re.compile(r"^(\s*)(from|import) tdn\.", re.MULTILINE)


def generate(out: pathlib.Path) -> None:
    """Run the pinned generator over every file of proto/tdn into `out`."""
    files = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tdn").rglob("*.proto"))
    well_known = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    plugins = [f"--plugin={name}={pathlib.Path(sys.executable).parent / name}" for name in PLUGINS]
    outputs = [
        f"--python_out={out}",
        f"--grpc_python_out={out}",
        f"--mypy_out=quiet:{out}",
        f"--mypy_grpc_out=quiet:{out}",
    ]
    code = protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *plugins, *outputs, *files])
    if code:
        sys.exit(code)
    for path in sorted(out.rglob("*.py*")):
        path.write_text(IMPORT.sub(r"\1\2 tdn_interop._pb.tdn.", path.read_text()))
    for folder in [out, *(p for p in out.rglob("*") if p.is_dir())]:
        (folder / "__init__.py").write_text("")


def main() -> None:
    """`generate.py` writes the stubs; `generate.py --check` fails when they would change."""
    with tempfile.TemporaryDirectory() as scratch:
        out = pathlib.Path(scratch)
        generate(out)
        if "--check" in sys.argv:
            fresh = {p.relative_to(out): p.read_bytes() for p in out.rglob("*.py*") if p.is_file()}
            kept = {
                p.relative_to(TARGET): p.read_bytes()
                for p in TARGET.rglob("*.py*")
                if p.is_file() and "__pycache__" not in p.parts
            }
            wrong = sorted(str(k) for k in fresh.keys() | kept.keys() if fresh.get(k) != kept.get(k))
            if wrong:
                sys.exit("stubs differ from proto/, run `make gen`: " + ", ".join(wrong))
            return
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(out, TARGET)


if __name__ == "__main__":
    main()
