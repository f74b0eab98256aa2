"""`tdn job`: propose, decide, watch and end jobs."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from tdn_interop.app.cli import arguments
from tdn_interop.app.cli.invocation import Invocation, invocation, read_file, write_new_file
from tdn_interop.app.cli.words import Words
from tdn_interop.errors import ConfigError, Reason, guard

SHORT_ID = 12  # enough to tell jobs apart, and every command takes the start of an id
_SHOWN = [
    "job_id", "flow", "flow_sha256", "coordinator", "parties", "inputs", "recipients", "learns", "algorithm", "suite",
    "created_at_ms", "ended_at_ms", "took_s", "progress", "hops", "party_states", "state", "party_state", "failure",
    "facts",
]  # fmt: skip
_COLUMNS = ["job_id", "flow", "state", "party_state", "progress", "created_at_ms"]

app = typer.Typer(help="Propose, decide, watch and end jobs.", no_args_is_help=True)


@app.command("run", epilog="Example: tdn job run flow.toml --no-wait")
def run(
    context: typer.Context,
    flow: Annotated[Path, typer.Argument(metavar="FLOW.toml", help="The flow.")],
    wait: Annotated[
        bool, typer.Option(help="Wait for the end; the exit code then tells how it ended.")
    ] = True,
) -> None:
    """Propose a job to its parties."""
    tdn = invocation(context)
    text = _flow_text(flow)
    started = tdn.ask(lambda node: node.run_job(text))
    if wait:
        tdn.output.note("job_proposed", job=started["job_id"])
        _to_the_end(tdn, started["job_id"], each_change=False)
    else:
        tdn.output.data(started, lambda document: tdn.output.line(document["job_id"]))


@app.command("watch", epilog="Example: tdn job watch 3f2a --json")
def watch(context: typer.Context, job: arguments.Job) -> None:
    """Show a job at each change until it ends; the exit code tells how it ended."""
    _to_the_end(invocation(context), job, each_change=True)


@app.command("approve", epilog="Example: tdn job approve 3f2a --comment 'as agreed in May'")
def approve(
    context: typer.Context,
    job: arguments.Job,
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse the job instead.")] = False,
    comment: arguments.Comment = "",
) -> None:
    """Decide on a job that waits for a human."""
    tdn = invocation(context)
    tdn.ask(lambda node: node.decide(job, comment, approve=not refuse))
    key = "decided_no" if refuse else "decided_yes"
    tdn.output.data({"job_id": job, "approved": not refuse}, lambda _: tdn.output.note(key, job=job))


@app.command("ls", epilog="Example: tdn job ls --json")
def ls(context: typer.Context) -> None:
    """List the jobs this node takes part in, newest first."""
    tdn = invocation(context)
    tdn.output.data(
        tdn.ask(lambda node: node.jobs()),
        lambda found: tdn.output.table(
            [job | {"job_id": job["job_id"][:SHORT_ID]} for job in found["jobs"]],
            _COLUMNS,
            lambda job: job["failure"] is not None,
        ),
    )


@app.command("show", epilog="Example: tdn job show 3f2a")
def show(context: typer.Context, job: arguments.Job) -> None:
    """Show one job; with -v also the flow as its parties agree on it."""
    tdn = invocation(context)
    tdn.output.data(tdn.ask(lambda node: node.job(job)), lambda found: _show(tdn, dict(found)))


@app.command("cancel", epilog="Example: tdn job cancel 3f2a --comment 'wrong file'")
def cancel(context: typer.Context, job: arguments.Job, comment: arguments.Comment = "") -> None:
    """Cancel a job at every party."""
    tdn = invocation(context)
    tdn.ask(lambda node: node.cancel(job, comment))
    tdn.output.data({"job_id": job}, lambda _: tdn.output.note("cancelled", job=job))


@app.command("bundle", epilog="Example: tdn job bundle 3f2a --out job.bundle")
def bundle(context: typer.Context, job: arguments.Job, out: arguments.NewFile) -> None:
    """Write the evidence bundle of a job that has ended."""
    tdn = invocation(context)
    content, top_key = tdn.ask(lambda node: node.bundle(job))
    write_new_file(out, content)
    tdn.output.data({"out": str(out), "bytes": len(content), "top_identity_key": top_key.hex()})


def _flow_text(flow: Path) -> str:
    try:
        return read_file(flow).decode()
    except UnicodeDecodeError:
        words = f"{flow} is not UTF-8 text"
        guard("TDN-X-CLI-01").refuse(Reason.INPUT_INVALID, words, ConfigError)


def _to_the_end(tdn: Invocation, job: str, *, each_change: bool) -> None:
    """Follow the job, print it when it has ended (as JSON also before, if `each_change`), leave with its failure."""
    stream = each_change and tdn.options.json
    with tdn.output.waiting() as show:
        try:
            last = tdn.follow(
                lambda node: node.watch(job),
                tdn.output.data if stream else lambda seen: show(seen["state"], seen["progress"]),
                complete=lambda seen: seen["ended_at_ms"] > 0,
            )
        except KeyboardInterrupt:
            tdn.output.note("job_goes_on", job=job)
            raise
    if not stream:
        # The failure comes as the error of the command.
        tdn.output.data(last, lambda _: _show(tdn, {**last, "failure": None}))
    _leave(last)


def _show(tdn: Invocation, job: dict[str, Any]) -> None:
    """The job for people: who brings what, who learns what, and at the end what this node knows of it."""
    flow = json.loads(job["flow_json"])
    inputs = [entry for task in flow["tasks"] for entry in task["inputs"]]
    facts = dict(sorted(job["facts"].items(), key=lambda fact: fact[0] == "result_file"))
    more: dict[str, Any] = {
        "inputs": {entry["party"]: f"{entry['resource']} ({', '.join(entry['keys'])})" for entry in inputs},
        "learns": _learns(tdn.output.words, job["learns"]),
        "took_s": (job["ended_at_ms"] - job["created_at_ms"]) / 1000 if job["ended_at_ms"] else None,
        "progress": None if job["ended_at_ms"] else job["progress"],
        "hops": job["hops"] or None,
        "facts": facts,
    }
    tdn.output.record({name: (job | more)[name] for name in _SHOWN})
    if tdn.options.verbose:
        for line in json.dumps(flow, indent=2, ensure_ascii=False).splitlines():
            tdn.output.line(line)


def _learns(words: Words, entries: list[dict[str, str]]) -> dict[str, str]:
    """Who learns what, in the language of `words`; what concerns nobody alone stands together."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for entry in entries:
        found[entry["party"] or words.say("in_general")].append(entry[words.language])
    return {who: " ".join(what) for who, what in found.items()}


def _leave(job: dict[str, Any]) -> None:
    """End the command as the job ended: with its failure, or 1 when it has none and did not succeed either."""
    from tdn_interop.app.control.control_client import failure_of  # noqa: PLC0415  loads gRPC

    failure = failure_of(job)
    if failure is not None:
        raise failure
    if job["state"] != "SUCCEEDED":
        raise typer.Exit(1)
