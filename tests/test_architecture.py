"""Rules of the house that no linter knows. Each rule is shown to find a planted fault."""

import ast
import pathlib
import re
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tdn_interop import errors
from tdn_interop._pb.tdn.common.v1.error_reason_pb2 import ErrorReason
from tdn_interop.reasons import Reason

ROOT = pathlib.Path(__file__).resolve().parent.parent

FILE_LINES = 400
FUNCTION_LINES = 60
MEDIAN_FUNCTION_LINES = 10

FORBIDDEN_NAMES = {"util", "utils", "common", "manager", "helper", "helpers", "handler", "handlers", "base"}
NAMED_BASE = "tdn_interop/adapters/base.py"
# Where a message of ours meets the wire: codecs, servicers, clients, and the two roots that register servicers.
MESSAGE_MODULES = re.compile(r"(wire|client|link|anchoring|node|mesh|\w+_wire|\w+_client|\w+_service)\.py")
# The boundaries: the command line, the server's translator, and the loops that must outlive one bad message.
CATCH_ALL = re.compile(r"tdn_interop/(app/cli/.*|app/jobs/(driver|job_loop|jobs)|transport/interceptors)\.py")
REQUIREMENT = re.compile(r"TDN-[TAFX]-[A-Z]{2,3}-\d\d")
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX)\b|NotImplementedError")
# A path below somebody's home, and web addresses: only those of sources and licences that are named on purpose.
MACHINE = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")
ADDRESS = re.compile(r"https?://([\w-]+(?:\.[\w-]+)+)")
SOURCES = {"creativecommons.org", "github.com", "www.w3.org"}  # the last one names the SVG namespace
ERROR_NAMES = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.TdnError)
}


@dataclass
class Module:
    """A source file and its tree."""

    path: str
    source: str

    @property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.source)))

    @property
    def functions(self) -> list[tuple[str, int]]:
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return [(n.name, n.end_lineno - n.lineno + 1) for n in self.nodes if isinstance(n, kinds)]


def tracked() -> list[pathlib.Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    return [path for path in paths if path.is_file()]


FILES = tracked()
SCRIPTS = ("proto/generate.py", "docs/generate.py")


def modules() -> Iterator[Module]:
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        ours = name.startswith("tdn_interop/") and not name.startswith("tdn_interop/_pb/")
        if path.suffix == ".py" and (ours or name in SCRIPTS):
            yield Module(name, path.read_text("utf-8"))


MODULES = list(modules())


# -- the rules: each yields what it finds wrong


def long_file(module: Module) -> Iterator[str]:
    lines = module.source.count("\n")
    if lines > FILE_LINES:
        yield f"{lines} lines"


def long_function(module: Module) -> Iterator[str]:
    for name, lines in module.functions:
        if lines > FUNCTION_LINES:
            yield f"{name} has {lines} lines"


def empty_name(module: Module) -> Iterator[str]:
    if pathlib.PurePath(module.path).stem in FORBIDDEN_NAMES and module.path != NAMED_BASE:
        yield "the name says nothing about what is inside"


def unfinished(module: Module) -> Iterator[str]:
    for number, line in enumerate(module.source.splitlines(), 1):
        if UNFINISHED.search(line):
            yield f"line {number}: {line.strip()}"


def swallowed(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.ExceptHandler):
            if node.type is None:
                yield f"line {node.lineno}: bare except"
            if all(is_idle(statement) for statement in node.body):
                yield f"line {node.lineno}: the exception is swallowed"
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
            kinds = {ast.unparse(kind) for kind in node.args}
            if not kinds or kinds & {"Exception", "BaseException"}:
                yield f"line {node.lineno}: every exception is swallowed"


def is_idle(statement: ast.stmt) -> bool:
    literal = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    return literal or isinstance(statement, ast.Pass | ast.Continue)


def catch_all(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if not isinstance(node, ast.ExceptHandler) or CATCH_ALL.fullmatch(module.path):
            continue
        broad = node.type is not None and re.search(r"\b(Base)?Exception\b", ast.unparse(node.type))
        last = node.body[-1]
        if broad and not (isinstance(last, ast.Raise) and last.exc is None):
            yield f"line {node.lineno}: only the boundaries may catch everything and not raise it again"


def unguarded(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = ast.unparse(node.exc.func).rpartition(".")[2]
            if name in ERROR_NAMES and module.path != "tdn_interop/errors.py":
                yield f"line {node.lineno}: raise {name} passes no guard"


def bad_requirement(module: Module) -> Iterator[str]:
    for node in module.nodes:
        if isinstance(node, ast.Constant):
            text = str(node.value)
            if re.match(r"TDN-\w", text) and not REQUIREMENT.fullmatch(text):
                yield f"line {node.lineno}: {text} is no requirement id"
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"guard", "errors.guard"}:
            argument = node.args[0] if node.args else None
            literal = isinstance(argument, ast.Constant) and REQUIREMENT.fullmatch(str(argument.value))
            if not literal and not isinstance(argument, ast.Name | ast.Attribute):
                yield f"line {node.lineno}: guard needs a requirement id"


def stray_messages(module: Module) -> Iterator[str]:
    if MESSAGE_MODULES.fullmatch(pathlib.PurePath(module.path).name):
        return
    for node in module.nodes:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if any(name == "_pb" or name.startswith("tdn_interop._pb") for name in names):
            yield f"line {node.lineno}: generated messages stay in wire modules, servicers and clients"


RULES = [
    long_file, long_function, empty_name, unfinished, swallowed, catch_all, unguarded, bad_requirement, stray_messages,
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps(rule):
    found = [f"{module.path}: {fault}" for module in MODULES for fault in rule(module)]
    assert found == []


HERE = "tdn_interop/app/planted.py"
PLANTED = [
    (long_file, HERE, "x = 1\n" * 401),
    (long_function, HERE, "def f():\n" + "    x = 1\n" * 60),
    (empty_name, "tdn_interop/app/utils.py", ""),
    (empty_name, "tdn_interop/transport/base.py", ""),
    (unfinished, HERE, "x = 1  # TODO later"),
    (unfinished, HERE, "raise NotImplementedError"),
    (swallowed, HERE, "try:\n    f()\nexcept:\n    g()"),
    (swallowed, HERE, "try:\n    f()\nexcept OSError:\n    pass"),
    (swallowed, HERE, "try:\n    f()\nexcept OSError:\n    'fine'\n    ..."),
    (swallowed, HERE, "for x in y:\n    try:\n        f()\n    except OSError:\n        continue"),
    (swallowed, HERE, "with contextlib.suppress(Exception):\n    f()"),
    (catch_all, HERE, "try:\n    f()\nexcept Exception:\n    g()"),
    (catch_all, HERE, "try:\n    f()\nexcept (OSError, BaseException) as e:\n    raise ValueError from e"),
    (unguarded, HERE, "raise ConfigError(Reason.INTERNAL, 'words')"),
    (unguarded, HERE, "raise errors.PeerProtocolError(Reason.INTERNAL, 'words') from e"),
    (bad_requirement, HERE, "requirement = 'TDN-A-PSI-6'"),
    (bad_requirement, HERE, "guard('T-IDN-01').check(True)"),
    (bad_requirement, HERE, "guard(f'TDN-T-IDN-{n}')"),
    (stray_messages, HERE, "from tdn_interop._pb.tdn.app.v1 import job_pb2"),
    (stray_messages, HERE, "import tdn_interop._pb.tdn.app.v1.job_pb2 as pb"),
    (stray_messages, HERE, "from tdn_interop import _pb"),
]
FINE = [
    (empty_name, NAMED_BASE, ""),
    (swallowed, HERE, "try:\n    f()\nexcept OSError:\n    return None"),
    (swallowed, HERE, "with contextlib.suppress(OSError):\n    f()"),
    (catch_all, HERE, "try:\n    f()\nexcept BaseException:\n    g()\n    raise"),
    (catch_all, "tdn_interop/app/cli/adapters.py", "try:\n    f()\nexcept Exception:\n    g()"),
    (unguarded, HERE, "raise status.from_rpc_error(e) from e"),
    (unguarded, HERE, "raise failure"),
    (bad_requirement, HERE, "guard(self.requirement).check(True)\nguard('TDN-A-PSI-06')"),
    (stray_messages, "tdn_interop/app/jobs/job_wire.py", "from tdn_interop._pb.tdn.app.v1 import job_pb2"),
]


@pytest.mark.parametrize(("rule", "path", "source"), PLANTED)
def test_a_planted_fault_is_found(rule, path, source):
    assert list(rule(Module(path, source)))


@pytest.mark.parametrize(("rule", "path", "source"), FINE)
def test_what_is_allowed_is_not_a_fault(rule, path, source):
    assert list(rule(Module(path, source))) == []


def test_the_rules_see_the_package():
    assert {"tdn_interop/errors.py", "tdn_interop/app/cli/__init__.py", *SCRIPTS} <= {m.path for m in MODULES}


def test_functions_are_short():
    lengths = [lines for module in MODULES for _, lines in module.functions]
    assert statistics.median(lengths) <= MEDIAN_FUNCTION_LINES


# -- the reason table


def test_numbers_of_reasons_are_unique_and_names_fit_the_wire():
    numbers = [reason.value.number for reason in Reason.__members__.values()]
    assert len(numbers) == len(set(numbers))
    assert all(re.fullmatch(r"[A-Z][A-Z0-9_]{1,61}[A-Z0-9]", name) for name in Reason.__members__)


def test_every_language_has_every_reason():
    table = {f"ERROR_REASON_{name}": reason.value.number for name, reason in Reason.__members__.items()}
    assert dict(ErrorReason.items()) == {"ERROR_REASON_UNSPECIFIED": 0, **table}


def test_exit_codes_are_the_documented_ones():
    assert {reason.value.exit_code for reason in Reason} <= {1, 3, 4, 5, 6, 70}


# -- the repository


def test_lint_runs_every_gate():
    makefile = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^lint:.*\n((?:\t.+\n)+)", makefile, re.MULTILINE)[0]
    gates = [
        "gen-check",
        "ruff check",
        "ruff format --check",
        "mypy",
        "lint-imports",
        "buf lint",
        "buf breaking",
    ]
    assert [gate for gate in gates if gate not in recipe] == []
    assert re.search(r"^test:.*\blint\b", makefile, re.MULTILINE)
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_the_repository_speaks_of_no_machine():
    found = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        if b"\0" in (content := path.read_bytes()):
            continue
        lines = enumerate(content.decode("utf-8", "replace").splitlines(), 1)
        found += [f"{name}:{number}" for number, line in lines if speaks_of_a_machine(line)]
    assert found == []


def speaks_of_a_machine(line):
    return bool(MACHINE.search(line)) or not SOURCES.issuperset(ADDRESS.findall(line))


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        (("see ", "/home", "/me/x"), True),
        (("cd ", "/root", "/x"), True),
        (("https", "://", "packages.example", "/simple"), True),
        (("https", "://", "github.com", "/a/b"), False),
        (("a/home", "/page"), False),
    ],
)
def test_a_machine_is_recognised(parts, found):
    assert speaks_of_a_machine("".join(parts)) is found
