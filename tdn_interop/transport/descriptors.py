"""How much fits under the limit of open files (RLIMIT_NOFILE): what would exceed it is refused before it fails."""

from __future__ import annotations

import resource

# With "no limit" the kernel's own default applies.
UNLIMITED = 1 << 20


def room(part: float, each: int) -> int:
    """How many things of `each` descriptors fit into this `part` of the limit; at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, int((UNLIMITED if soft == resource.RLIM_INFINITY else soft) * part) // each)
