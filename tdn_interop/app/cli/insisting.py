"""Commands that outlive their node: when it was there and goes away, they wait for it and ask again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from tdn_interop.app.cli.invocation import Invocation
from tdn_interop.errors import Reason, TdnError

if TYPE_CHECKING:
    from tdn_interop.app.control.control_client import NodeClient

Document = dict[str, Any]
Question = Callable[["NodeClient"], AsyncIterator[Document]]
SHORTEST_S, LONGEST_S = 0.2, 2.0


def insist(
    tdn: Invocation, question: Question, each: Callable[[Document], None],
    complete: Callable[[Document], bool], patience_s: float,
) -> Document:  # fmt: skip
    """Like `Invocation.follow`, over any number of nodes' lives; `question` must mean the same each time.

    Errors: those of `follow`; NODE_DOWN at once when the node was never there, later when it is away for longer
    than `patience_s`.
    """
    begun = False

    def noted(step: Document) -> None:
        nonlocal begun
        begun = True
        each(step)

    while True:
        try:
            return tdn.follow(question, noted, complete)
        except TdnError as error:
            if not begun or error.reason is not Reason.NODE_DOWN:
                raise
        except KeyboardInterrupt:
            tdn.output.note("transfer_given_up")
            raise
        _await_node(tdn, patience_s)


def _await_node(tdn: Invocation, patience_s: float) -> None:
    """Wait until the node answers. Errors: NODE_DOWN."""
    from tenacity import (  # noqa: PLC0415  not needed by `tdn --help`
        Retrying,
        retry_if_exception,
        stop_after_delay,
        wait_random_exponential,
    )

    tdn.output.note("node_away", node=tdn.config.id)
    policy = Retrying(
        stop=stop_after_delay(patience_s), wait=wait_random_exponential(multiplier=SHORTEST_S, max=LONGEST_S),
        retry=retry_if_exception(_is_down), reraise=True,
    )  # fmt: skip
    try:
        policy(tdn.ask, lambda node: node.status())
    except KeyboardInterrupt:
        tdn.output.note("transfer_goes_on")
        raise


def _is_down(error: BaseException) -> bool:
    return isinstance(error, TdnError) and error.reason is Reason.NODE_DOWN
