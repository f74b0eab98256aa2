"""What a node is, read from its folder: identity key, TLS files, place in the mesh."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from tdn_interop.config import NodeConfig
from tdn_interop.errors import ConfigError, Reason, guard
from tdn_interop.identity import Credentials, Identity
from tdn_interop.transport import pki
from tdn_interop.transport.records_wire import NodeRecord, decode_record
from tdn_interop.transport.tls import TlsFiles
from tdn_interop.transport.trust import Membership, delegate, now_ms


@dataclass(frozen=True, slots=True)
class Standing:
    """The identity of a node and what its enrolment gave it."""

    key: Identity
    membership: Membership
    files: TlsFiles

    @classmethod
    def load(cls, config: NodeConfig, *, expired: bool = False) -> Standing:
        """Read the folder. Errors: NOT_ENROLLED, CONFIG_INVALID, CERTIFICATE_EXPIRED unless that is allowed."""
        key = Identity.load(config.id, config.file("identity.key"))
        membership = Membership.load(config.file("membership.json"))
        files = TlsFiles(config.file("tls.pem"), config.file("tls.key"), config.file("root.pem"))
        standing = cls(key, membership, files)
        guard("TDN-T-IDN-01").check(
            expired or standing.expires_at_ms > now_ms(),
            Reason.CERTIFICATE_EXPIRED,
            f"the certificate of {config.id} has expired",
            ConfigError,
        )
        return standing

    @property
    def chain(self) -> list[x509.Certificate]:
        """Our certificates as they are now, the leaf first. Errors: CONFIG_INVALID."""
        try:
            return x509.load_pem_x509_certificates(self.files.chain.read_bytes())
        except (OSError, ValueError):
            guard("TDN-T-IDN-07").refuse(
                Reason.CONFIG_INVALID, f"no certificate in {self.files.chain}", ConfigError
            )

    @property
    def leaf(self) -> x509.Certificate:
        """Our TLS certificate as it is now: it is renewed while the node runs."""
        return self.chain[0]

    @property
    def roots(self) -> list[x509.Certificate]:
        """The roots that we trust now, the newest of our own top first."""
        return x509.load_pem_x509_certificates(self.files.root.read_bytes())

    @property
    def own_root(self) -> x509.Certificate:
        """The newest root that our own chain hangs on. Errors: CONFIG_INVALID."""
        chain = self.chain
        found = next((root for root in self.roots if any(pki.issued_by(c, root) for c in chain)), None)
        if found is None:
            words = f"{self.files.chain} and {self.files.root} do not fit together"
            guard("TDN-T-IDN-07").refuse(Reason.CONFIG_INVALID, words, ConfigError)
        return found

    @property
    def record(self) -> NodeRecord:
        """Our entry in the top's log."""
        return decode_record(self.membership.record.statement)

    @property
    def expires_at_ms(self) -> int:
        """End of the TLS certificate."""
        return _ms(self.leaf.not_valid_after_utc)

    def credentials(self, shown: x509.Certificate | None = None) -> Credentials:
        """Our record, and a delegation of the TLS key of `shown`, or of the newest, for as long as its certificate."""
        leaf = shown or self.leaf
        starts, ends = _ms(leaf.not_valid_before_utc), _ms(leaf.not_valid_after_utc)
        return Credentials(self.membership.record, delegate(self.key, pki.spki_sha256(leaf), starts, ends))


def _ms(when: datetime) -> int:
    return int(when.timestamp() * 1000)
