"""How often one source may ask: token buckets by source and class of call, in bounded memory."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tdn_interop.errors import Reason, Refused, guard

# Buckets of one class. A bucket that has been idle for long is full again, so the one used longest ago goes first.
SOURCES = 4096


@dataclass(frozen=True, slots=True)
class Rate:
    """`per_s` tokens come in a second, `burst` pile up."""

    per_s: float
    burst: float


class Bucket:
    """Tokens of one source; a full bucket at first. `clock` in seconds."""

    def __init__(self, rate: Rate, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._tokens = rate.burst
        self._clock = clock
        self._at = clock()

    def wait_s(self) -> float:
        """Take a token, then 0; otherwise the seconds until there will be one."""
        now = self._clock()
        self._tokens = min(self._rate.burst, self._tokens + (now - self._at) * self._rate.per_s)
        self._at = now
        if self._tokens < 1:
            return (1 - self._tokens) / self._rate.per_s
        self._tokens -= 1
        return 0


class Rates:
    """The buckets of a node: `rates` by class of call; a class that is not named has no limit."""

    def __init__(self, rates: Mapping[str, Rate], clock: Callable[[], float] = time.monotonic) -> None:
        self._rates = rates
        self._clock = clock
        self._buckets: dict[str, OrderedDict[str, Bucket]] = {name: OrderedDict() for name in rates}

    def take(self, kind: str, source: str) -> None:
        """Take a token of `source` for a call of class `kind`.

        Errors: RATE_LIMITED (Refused) with `retry_after_ms` and `per_s` in its details.
        """
        if kind not in self._rates:
            return
        rate, buckets = self._rates[kind], self._buckets[kind]
        bucket = buckets.setdefault(source, Bucket(rate, self._clock))
        buckets.move_to_end(source)
        if len(buckets) > SOURCES:
            buckets.popitem(last=False)
        wait_s = bucket.wait_s()
        guard("TDN-T-LIM-06").check(
            not wait_s, Reason.RATE_LIMITED, f"{source}: more than {rate.per_s:g} {kind} in a second", Refused,
            retry_after_ms=math.ceil(wait_s * 1000), per_s=f"{rate.per_s:g}",
        )  # fmt: skip
