"""What a node is, read from its folder: identity key, TLS files, place in the mesh."""

from __future__ import annotations

from dataclasses import dataclass

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
    leaf: x509.Certificate

    @classmethod
    def load(cls, config: NodeConfig, *, expired: bool = False) -> Standing:
        """Read the folder. Errors: NOT_ENROLLED, CONFIG_INVALID, CERTIFICATE_EXPIRED unless that is allowed."""
        key = Identity.load(config.id, config.file("identity.key"))
        membership = Membership.load(config.file("membership.json"))
        files = TlsFiles(config.file("tls.pem"), config.file("tls.key"), config.file("root.pem"))
        try:
            leaf = x509.load_pem_x509_certificates(files.chain.read_bytes())[0]
        except (OSError, ValueError):
            guard("TDN-T-IDN-07").refuse(
                Reason.CONFIG_INVALID, f"no certificate in {files.chain}", ConfigError
            )
        ends = int(leaf.not_valid_after_utc.timestamp() * 1000)
        guard("TDN-T-IDN-01").check(
            expired or ends > now_ms(),
            Reason.CERTIFICATE_EXPIRED,
            f"the certificate of {config.id} has expired",
            ConfigError,
        )
        return cls(key, membership, files, leaf)

    @property
    def record(self) -> NodeRecord:
        """Our entry in the top's log."""
        return decode_record(self.membership.record.statement)

    @property
    def expires_at_ms(self) -> int:
        """End of the TLS certificate."""
        return int(self.leaf.not_valid_after_utc.timestamp() * 1000)

    def credentials(self) -> Credentials:
        """Our record, and a delegation of our TLS key that is valid as long as its certificate."""
        starts = int(self.leaf.not_valid_before_utc.timestamp() * 1000)
        spki = pki.spki_sha256(self.leaf)
        return Credentials(self.membership.record, delegate(self.key, spki, starts, self.expires_at_ms))
