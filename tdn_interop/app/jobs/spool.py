"""Results that are computed and not yet handed out: one file per job in the node's folder, for its owner alone.

Handing out gives the file a second name, so that whoever asks can see that what stands in the target place is
ours: it is the same file, even after the process was killed in between. On another file system there is a copy
beside the target first, under a name of the job.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from tdn_interop.app.data.results import (
    Written,
    appearing,
    refuse_existing,
    sync_directory,
    writable,
    written,
)


class Spool:
    """The spool in `folder`, which is made when it is needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, job_id: str, write: Callable[[Path], Written]) -> Written:
        """Keep what `write` writes, in the place of what an earlier run has left. Errors: those of `write`."""
        self.drop(job_id)
        return write(self._file(job_id))

    def found(self, job_id: str, rows: int) -> Written | None:
        """What an earlier process has kept: a table of so many rows."""
        file = self._file(job_id)
        return written(file, rows) if file.exists() else None

    def deliver(self, job_id: str, result: Written, target: Path) -> Written:
        """Give the file of the job the name `target`; doing it again changes nothing.

        Errors: OUTPUT_EXISTS when another file has that name, and why there can be none.
        """
        with writable(target):
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            source = self._near(job_id, target)
            try:
                os.link(source, target)
            except FileExistsError:
                if not target.samefile(source):
                    refuse_existing(target)
            sync_directory(target.parent)
        return replace(result, path=target)

    def withdraw(self, job_id: str, target: Path) -> None:
        """Take `target` away if it is the file of the job."""
        for source in (self._file(job_id), _beside(job_id, target)):
            if source.exists() and target.exists() and target.samefile(source):
                target.unlink()

    def drop(self, job_id: str, target: Path | None = None) -> None:
        """Forget the file of the job; what was handed out stays."""
        self._file(job_id).unlink(missing_ok=True)
        if target:
            _beside(job_id, target).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str]) -> None:
        """Remove what belongs to no job of `keep`. Only while no job runs."""
        if self._folder.is_dir():
            for file in self._folder.iterdir():
                if file.name not in keep:
                    file.unlink()

    def _file(self, job_id: str) -> Path:
        return self._folder / job_id

    def _near(self, job_id: str, target: Path) -> Path:
        """The file, on the file system of the target."""
        source, copy = self._file(job_id), _beside(job_id, target)
        if _same_file_system(source, target.parent):
            return source
        if not copy.exists():
            with appearing(copy) as file, source.open("rb") as spooled:
                shutil.copyfileobj(spooled, file)
        return copy


def _same_file_system(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def _beside(job_id: str, target: Path) -> Path:
    return target.with_name(f".delivery-{job_id}")
