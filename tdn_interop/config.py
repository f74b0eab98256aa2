"""The configuration of a node: one TOML file, `TDN_` environment variables above it, read once.

Secrets are files in the node's directory, never values. Unknown keys are errors.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import tomllib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from tdn_interop import ids
from tdn_interop.errors import ConfigError, Reason, guard

RoleName = Literal["child", "hub", "top"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ApprovalRule(_Section):
    """Every condition that is given must hold; an empty list allows nothing."""

    initiators: list[str] | None = None
    algorithms: list[str] | None = None
    receivers: list[str] | None = None
    resources: list[str] | None = None
    keys: list[str] | None = None


class Approval(_Section):
    """Who decides on a proposed job: a human (`tdn job approve`), or rules; what no rule approves is then refused."""

    mode: Literal["manual", "rules"] = "manual"
    rules: list[ApprovalRule] = []


class Timeouts(_Section):
    """Seconds. Too small: jobs fail on slow links; too large: a dead party is noticed late.

    The last five are the longest that the flow of another node may set: it binds this node for so long.
    """

    dial_s: float = Field(default=10, gt=0, le=300)
    idle_s: float = Field(default=120, gt=0, le=86_400)
    approval_s: float = Field(default=86_400, gt=0, le=30 * 86_400)
    step_s: float = Field(default=3_600, gt=0, le=30 * 86_400)
    run_s: float = Field(default=86_400, gt=0, le=30 * 86_400)
    stop_s: float = Field(default=600, gt=0, le=30 * 86_400)
    lease_s: float = Field(default=3_600, gt=0, le=30 * 86_400)


class Rates(_Section):
    """Calls that one node (one address, before it has a certificate) may make in a second, ten times as many at once.

    Too small: nodes are refused when many of them come back at once; too large: one node keeps this one busy.
    """

    openings: float = Field(default=100, gt=0, le=1e6)
    resolves: float = Field(default=200, gt=0, le=1e6)
    hellos: float = Field(default=50, gt=0, le=1e6)
    attachments: float = Field(default=5, gt=0, le=1e6)
    enrolments: float = Field(default=5, gt=0, le=1e6)
    letters: float = Field(default=10, gt=0, le=1e6)
    calls: float = Field(default=200, gt=0, le=1e6)


class LinkTo(_Section):
    """A node to keep a link to, besides the parent: a hub or top that names this node among its `neighbours`."""

    node: str
    address: str


class NodeConfig(BaseSettings):
    """Everything one node is told."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="TDN_", env_nested_delimiter="__", validate_default=True
    )

    id: str
    role: RoleName
    dir: Path
    listen: str | None = None
    enrolment: str | None = None
    metrics: str | None = None
    log: Path | None = None
    database: str | None = None
    direct: dict[str, str] = {}
    links: list[LinkTo] = []
    neighbours: list[str] = []
    approval: Approval = Approval()
    timeouts: Timeouts = Timeouts()
    rates: Rates = Rates()
    suites: list[str] | None = None
    leaf_life_s: int = Field(default=86_400, ge=5, le=30 * 86_400)
    status_max_age_s: float = Field(default=600, ge=90, le=86_400)
    max_items: int = Field(default=2_000_000, gt=0, le=2**31)

    @field_validator("id")
    @classmethod
    def _known_grammar(cls, value: str) -> str:
        return ids.node_id(value)

    @field_validator("listen", "enrolment", "metrics")
    @classmethod
    def _host_and_port(cls, value: str | None) -> str | None:
        if value is not None:
            split_address(value)
        return value

    @field_validator("neighbours")
    @classmethod
    def _known_neighbours(cls, value: list[str]) -> list[str]:
        return [ids.node_id(node) for node in value]

    @field_validator("links")
    @classmethod
    def _known_links(cls, value: list[LinkTo], info: ValidationInfo) -> list[LinkTo]:
        nodes = [ids.node_id(link.node) for link in value]
        for link in value:
            split_address(link.address)
        me = info.data.get("id", "")
        wrong = [node for node in nodes if node in {me, ids.parent(me)} or nodes.count(node) > 1]
        guard("TDN-X-LAB-05").check(
            not wrong,
            Reason.CONFIG_INVALID,
            f"links: {', '.join(wrong)}: another node, and each once",
            ConfigError,
        )
        return value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Environment above the file; no dotenv, no secret folders."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings)

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the store."""
        return self.database or f"sqlite:///{self.dir / 'node.db'}"

    @property
    def results(self) -> Path:
        """Folder of results."""
        return self.dir / "results"

    def file(self, name: str) -> Path:
        """A file of the node's directory."""
        return self.dir / name


def load_config(path: Path | None) -> NodeConfig:
    """Read `path` (default `node.toml` here, or the file `TDN_CONFIG` names).

    Errors: CONFIG_INVALID, naming the file and each wrong key.
    """
    file = path or Path(os.environ.get("TDN_CONFIG", "node.toml"))  # noqa: TID251  this module is the one reader
    try:
        values = TomlConfigSettingsSource(NodeConfig, file).toml_data if file.is_file() else None
        if values is None:
            guard("TDN-X-LAB-05").refuse(
                Reason.CONFIG_INVALID,
                f"there is no file {file}; --config names the configuration of a node",
                ConfigError,
            )
        values.setdefault("dir", str(file.resolve().parent))
        config = NodeConfig(**values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        guard("TDN-X-LAB-05").refuse(Reason.CONFIG_INVALID, f"{file}: {wrong}", ConfigError)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        guard("TDN-X-LAB-05").refuse(Reason.CONFIG_INVALID, f"{file}: {error}", ConfigError)
    return config


def split_address(text: str) -> tuple[str, int]:
    """(host, port) of `host:port`. Errors: CONFIG_INVALID."""
    host, _, port = text.rpartition(":")
    ok = host and port.isdigit() and int(port) < 65536
    guard("TDN-X-LAB-05").check(ok, Reason.CONFIG_INVALID, f"not host:port: {text!r}", ConfigError)
    return host.strip("[]"), int(port)


def runtime_dir(directory: Path) -> Path:
    """Make and check a short private folder for the sockets of the node that lives in `directory`.

    Unix socket names end at 107 bytes, so they cannot stand in a deep node directory. The folder is
    0700 and ours, or it is not used. Errors: CONFIG_INVALID.
    """
    folder = _runtime_path(directory)
    folder.mkdir(mode=0o700, exist_ok=True)
    _check_private(folder)
    return folder


def _runtime_path(directory: Path) -> Path:
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"tdn-{os.getuid()}-{name}"


def _check_private(folder: Path) -> None:
    found = folder.lstat()
    ok = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    guard("TDN-X-LAB-05").check(
        ok, Reason.CONFIG_INVALID, f"{folder} is not a private folder of ours", ConfigError
    )


def remove_runtime_dir(directory: Path) -> None:
    """Remove the folder of `runtime_dir` and the sockets in it, when the process that used them stops."""
    shutil.rmtree(runtime_dir(directory))


def control_socket(config: NodeConfig) -> str:
    """Name the gRPC target of the node's control socket. Errors: CONFIG_INVALID when somebody else made its folder."""
    folder = _runtime_path(config.dir)
    if folder.exists():
        _check_private(folder)
    return f"unix:{folder / 'control.sock'}"
