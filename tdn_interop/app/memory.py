"""How the C library keeps memory, for a process that moves megabytes all day."""

from __future__ import annotations

import ctypes

# mallopt(3). By default each buffer of some 100 KiB or more is fetched from the kernel and given back, page by page:
# that costs more than copying it (docs/design/0006-speed-of-the-channel.md). Frames and what gRPC reads at once stay
# below the first; larger ones, tables above all, go back at once as ever. One arena, since the threads hand buffers on.
_MMAP_THRESHOLD, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX = -3, -1, -2, -8
_SETTINGS = {_MMAP_THRESHOLD: 8 << 20, _TRIM_THRESHOLD: 64 << 20, _TOP_PAD: 8 << 20, _ARENA_MAX: 1}


def keep_buffers() -> bool:
    """Let freed buffers be used again, up to 64 MiB of them; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) for option, value in _SETTINGS.items())
