"""
Puts the wall clock of a Python process forward by RIG_CLOCK_SHIFT seconds; Python imports this by itself at its start.

Clocks that only measure are left alone, as when somebody sets a machine's clock. With libfaketime 0.9.10 they cannot
be: `time.sleep` of Python 3.11 then fails, and if they are shifted too, threads wait without end.
"""

import datetime as dt
import os
import time
from typing import Any

_SHIFT_S = float(os.environ["RIG_CLOCK_SHIFT"])
_datetime = dt.datetime
_time, _time_ns, _gmtime, _localtime = time.time, time.time_ns, time.gmtime, time.localtime


class _AnyDatetime(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _datetime)


class _Shifted(_datetime, metaclass=_AnyDatetime):
    @classmethod
    def now(cls, tz: dt.tzinfo | None = None) -> _datetime:  # type: ignore[override]
        return _datetime.now(tz) + dt.timedelta(seconds=_SHIFT_S)

    @classmethod
    def utcnow(cls) -> _datetime:  # type: ignore[override]
        return cls.now(dt.UTC).replace(tzinfo=None)


def _shifted(seconds: Any) -> Any:
    return time.time() if seconds is None else seconds


dt.datetime = _Shifted  # type: ignore[misc]
time.time = lambda: _time() + _SHIFT_S
time.time_ns = lambda: _time_ns() + int(_SHIFT_S * 1e9)
time.gmtime = lambda seconds=None: _gmtime(_shifted(seconds))
time.localtime = lambda seconds=None: _localtime(_shifted(seconds))
