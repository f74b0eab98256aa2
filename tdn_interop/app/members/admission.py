"""Admission: the enrolment listener of a hub or top, and the tokens it hands out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tdn_interop import ids
from tdn_interop.app.members.register import Register
from tdn_interop.app.members.standing import Standing
from tdn_interop.config import NodeConfig
from tdn_interop.errors import Reason, Refused, guard
from tdn_interop.identity import Signed
from tdn_interop.transport import pki, records_wire, tls
from tdn_interop.transport.enrolment_service import Endorse, EnrolmentServicer
from tdn_interop.transport.front import Refusal
from tdn_interop.transport.interceptors import ServerCalls
from tdn_interop.transport.issuer import Issuer
from tdn_interop.transport.records_wire import Token
from tdn_interop.transport.server import Server

# Whoever enrols shows no certificate yet: long enough for the answer of a top, no place to stay.
ENROLMENT_S = 30.0


class Admission:
    """How nodes become members below this one. `endorse` gets a record signed by the top."""

    def __init__(
        self, config: NodeConfig, standing: Standing, register: Register, endorse: Endorse, issuer: Issuer,
        bundle: Callable[[], Signed | None],
    ) -> None:  # fmt: skip
        self._config = config
        self._standing = standing
        self._register = register
        self._endorse = endorse
        self._issuer = issuer
        self._bundle = bundle
        self._server: Server | None = None

    async def start(self, folder: Path, calls: ServerCalls, on_refusal: Refusal) -> None:
        """Serve, if this node enrols anybody. Errors: CONFIG_INVALID when the address cannot be bound."""
        config, files = self._config, self._standing.files
        if config.role == "child" or not config.enrolment:
            return
        server = Server(
            lambda: tls.server_context(files, mutual=False),
            folder, "enrol", on_refusal, [calls], life_s=ENROLMENT_S,
        )  # fmt: skip
        servicer = EnrolmentServicer(
            self._issuer, lambda: (pki.der(self._standing.own_root), self._bundle()),
            self._standing.membership.record, self._register, self._endorse,
        )  # fmt: skip
        servicer.add_to(server.grpc)
        self._server = server
        await server.start(config.enrolment)

    def source(self, grpc_peer: str) -> str:
        """The address behind `context.peer()` of the enrolment listener; empty when it is gone."""
        return self._server.front.source(grpc_peer) if self._server else ""

    async def close(self) -> None:
        """Stop serving."""
        if self._server:
            await self._server.close()

    async def invite(self, node: str, role: str, valid_s: int) -> str:
        """A token for a new member. Errors: UNSUPPORTED at a child, POLICY_DENIED for a node not directly below."""
        config, place = self._config, self._standing.membership
        guard("TDN-T-IDN-07").check(
            config.enrolment and config.listen, Reason.UNSUPPORTED, f"{config.id} enrols nobody", Refused
        )
        fits = ids.parent(node) == config.id and (role == "child" or (role == "hub" and config.role == "top"))
        guard("TDN-T-IDN-07").check(
            fits, Reason.POLICY_DENIED, f"{config.id} cannot enrol {node} as {role}", Refused
        )
        secret, ends = await self._register.invite(node, role, valid_s)
        root = self._standing.own_root
        return records_wire.encode_token(Token(
            config.enrolment or "", config.listen or "", config.id, node, role, secret, pki.sha256(root), place.top,
            place.top_identity_key, ends,
        ))  # fmt: skip
