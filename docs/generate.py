"""Write the pages under docs/reference from the reason table and from the command line itself.

`generate.py` writes, `generate.py --check` fails when a page would change.
"""  # noqa: INP001  a script, not a package

import pathlib
import sys
from typing import Any

import typer

from tdn_interop.app.cli import app
from tdn_interop.app.cli.words import Words
from tdn_interop.reasons import Reason, Retry

TARGET = pathlib.Path(__file__).resolve().parent / "reference"

ERRORS_HEAD = """\
# Errors 错误

<!-- Generated from tdn_interop/reasons.py by docs/generate.py. Do not edit. -->

Every refusal carries one of these names: in `google.rpc.ErrorInfo.reason` (domain `tdn`) of a gRPC status, in
`tdn.common.v1.Failure.reason` of a job that failed, and in the `error.reason` that a command prints with `--json`.
Numbers are those of `tdn.common.v1.ErrorReason`; names and numbers are permanent.

| exit code | meaning | 含义 |
|---|---|---|
| 0 | done | 完成 |
| 1 | it ran, and the answer is no | 已运行，结论为否 |
| 2 | the command was typed wrong | 命令用法有误 |
| 3 | configuration or input | 配置或输入有误 |
| 4 | unreachable, or out of time | 不可达或超时 |
| 5 | refused, or nothing in common | 被拒绝或无共同选项 |
| 6 | the other side broke the protocol | 对端违反协议 |
| 70 | a defect of this product | 本产品缺陷 |
| 130 | interrupted | 被中断 |

| name | number | gRPC status | fault | try again | exit code |
|---|---|---|---|---|---|
"""

CLI_HEAD = """\
# Command line

<!-- Generated from tdn_interop/app/cli by docs/generate.py. Do not edit. -->

Data goes to stdout, everything else to stderr. With `--json` a command prints one JSON document, `job watch` and
transfers one per line, and an error is `{"error": {…}}` on stderr; mistakes of usage stay text. Exit codes are in
[errors.md](errors.md). The options of `tdn` itself may stand anywhere before `--`: `tdn job ls --json`.
"""

_RETRY = {Retry.NO: "no", Retry.LATER: "later", Retry.NEW_SESSION: "in a new session"}


def errors_page() -> str:
    """The text of errors.md."""
    english, chinese = Words("en"), Words("zh")
    rows, parts = [], []
    for reason in sorted(Reason, key=lambda reason: reason.value.number):
        row = reason.value
        link = f"[{reason.name}](#{reason.name.lower()})"
        retry = _RETRY[row.retry]
        rows.append(
            f"| {link} | {row.number} | {row.status} | {english.blame(row.blame)} | {retry} | {row.exit_code} |\n"
        )
        sentences = [
            f"{summary}  \n{advice}" for summary, advice in zip(row.summary, row.advice, strict=True)
        ]
        parts.append(
            f"\n## {reason.name}\n\n{sentences[0]}\n\n{sentences[1]}责任：{chinese.blame(row.blame)}。\n"
        )
    return ERRORS_HEAD + "".join(rows) + "".join(parts)


def cli_page() -> str:
    """The text of cli.md."""
    return CLI_HEAD + "".join(_command(("tdn",), typer.main.get_command(app)))


def _command(words: tuple[str, ...], command: Any) -> list[str]:
    """The section of a command and those below it. Any: click's types moved between versions of typer."""
    children = getattr(command, "commands", {})
    shown = [p for p in command.params if "--help" not in p.opts and not getattr(p, "hidden", False)]
    arguments = [p.metavar or p.name.upper() for p in shown if p.param_type_name == "argument"]
    usage = " ".join([*words, "[OPTIONS]", *arguments, *(["COMMAND"] if children else [])])
    parts = [f"\n{'#' * (len(words) + 1)} {' '.join(words)}\n\n{command.help}\n\n```\n{usage}\n```\n"]
    if shown:
        parts += ["\n| | | default |\n|---|---|---|\n", *map(_parameter, shown)]
    if not children:
        parts.append(f"\n{command.epilog.replace(': ', ': `', 1)}`\n")
    for name, child in children.items():
        parts += _command((*words, name), child)
    return parts


def _parameter(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        name, default = parameter.metavar or parameter.name.upper(), "required"
    else:
        value = f" {parameter.metavar}" if parameter.metavar else ""
        name = ", ".join(opt + value for opt in parameter.opts + parameter.secondary_opts)
        default = "required" if parameter.required else _default(parameter.default)
    return f"| `{name.replace('|', chr(92) + '|')}` | {parameter.help} | {default} |\n"


def _default(value: Any) -> str:
    return "" if value in (None, False, "") else f"`{getattr(value, 'value', value)}`".replace("True", "yes")


def pages() -> dict[pathlib.Path, str]:
    """Every generated page and its text."""
    return {TARGET / "errors.md": errors_page(), TARGET / "cli.md": cli_page()}


def main() -> None:
    """Write, or check."""
    changed = {p: text for p, text in pages().items() if not p.is_file() or p.read_text("utf-8") != text}
    if "--check" in sys.argv:
        names = ", ".join(path.name for path in changed)
        sys.exit(f"out of date, run `make gen`: {names}" if changed else 0)
    for path, text in changed.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
