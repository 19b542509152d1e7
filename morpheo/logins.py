"""
Logins: who somebody is, by their password or token.

The user of the settings (``MORPHEO_USER`` with ``MORPHEO_PASSWORD``) is an admin without a row, so that there is
somebody before anybody was added. All others are rows. Passwords are kept as argon2id, which is slow on purpose; that a
password was right is remembered for `REMEMBERED_S`, under a key that dies with the process.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import ipaddress
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError

from morpheo.access import (
    TOKEN,
    Principal,
    Role,
    User,
    is_name,
    secret_digest,
)
from morpheo.errors import Throttled, Unavailable
from morpheo.storage.database import Database
from morpheo.throttle import Backoff

#: Longest password that is looked at, in bytes.
MAX_PASSWORD = 1024
#: For how long a password that was right need not be checked again, in seconds.
REMEMBERED_S = 300.0
#: Most passwords that are remembered.
MAX_REMEMBERED = 1000
#: Passwords that are checked at once in one process; each takes memory, and a processor.
CHECKED_AT_ONCE = 2
#: Logins that may fail without a wait: in one name, and from one address, behind which there may be a whole clinic.
FREE_BY_NAME, FREE_BY_ADDRESS = 5, 30
#: Longest wait after one that failed, in seconds.
LONGEST_WAIT_S = 60.0
#: Stands for the hash of the password of the settings.
_BOOTSTRAP = "settings"

# Memory, time and parallelism are the first choice of OWASP's Password Storage Cheat Sheet for argon2id.
HASHER = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


class Logins:
    """
    Finds out who calls.

    Args:
        database: Keeps the rows.
        bootstrap: User and password of the settings; none if the password is empty.
        clock: A monotonic clock, in seconds.
    """

    def __init__(
        self, database: Database, bootstrap: tuple[str, str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._bootstrap = bootstrap
        self._clock = clock
        self._by_name = Backoff(free=FREE_BY_NAME, longest_s=LONGEST_WAIT_S, clock=clock)
        self._by_address = Backoff(free=FREE_BY_ADDRESS, longest_s=LONGEST_WAIT_S, clock=clock)
        self._slots = threading.BoundedSemaphore(CHECKED_AT_ONCE)
        self._key = secrets.token_bytes(32)
        self._remembered: OrderedDict[bytes, tuple[str, float]] = OrderedDict()
        self._lock = threading.Lock()
        _nobodys()

    def with_password(self, name: str, password: str, *, address: str) -> Principal | None:
        """
        Return who gave a name and password, None if these are wrong.

        A name that nobody has costs as much as a wrong password.

        Raises:
            Throttled: too many failed in that name or from that address; the password was not looked at.
            DatabaseUnavailable: it is not known whether they are right.
        """
        is_bootstrap = self._is_bootstrap(name, password)
        user = None if is_bootstrap else self._find(name)
        known_hash = user.password_hash if user is not None and not user.disabled else None
        proof, fact = self._proof(name, password), _BOOTSTRAP if is_bootstrap else known_hash
        remembered = fact is not None and self._is_remembered(proof, fact)
        address = _network_of(address)
        wait_s = max(self._by_name.wait_s(name[:64]), self._by_address.wait_s(address))
        if wait_s and not remembered:
            # Also if the password is right: or there would be as many tries as anybody likes.
            raise Throttled("too many logins failed; wait, and check the password", retry_after_s=wait_s)
        if remembered or is_bootstrap or self._verify(known_hash, password):
            assert fact is not None  # noqa: S101 - for the type checker: no password is that of `_nobodys`
            self._remember(proof, fact)
            self._by_name.succeeded(name[:64])
            roles = frozenset({Role.ADMIN}) if user is None else user.roles
            return Principal(name=name, roles=roles)
        self._failed(name, address, known=user is not None or name == self._bootstrap[0])
        return None

    def with_token(self, secret: str) -> Principal | None:
        """
        Return who sent a token, None if it is none that can be used now.

        Raises:
            DatabaseUnavailable: that is not known.
        """
        if TOKEN.fullmatch(secret) is None:
            return None
        with self._database.read() as work:
            found = work.accounts.valid_token(secret_digest(secret))
            now = work.accounts.now() if found else None
        if found is None or now is None:
            return None
        token, user = found
        if token.last_used_at is None or now - token.last_used_at > timedelta(minutes=1):
            with suppress(Unavailable), self._database.begin() as work:
                work.accounts.used(token.id)
        return Principal(name=user.name, roles=token.roles & user.roles, scopes=token.scopes, token=token.id)

    def _is_bootstrap(self, name: str, password: str) -> bool:
        user, expected = self._bootstrap
        # Both are compared whatever the first says, so that the time tells nothing.
        same_user = hmac.compare_digest(_bytes(name), _bytes(user))
        same_password = hmac.compare_digest(_bytes(password), _bytes(expected))
        return same_user and same_password and bool(expected)

    def _find(self, name: str) -> User | None:
        if not is_name(name):
            return None
        with self._database.read() as work:
            return work.accounts.find(name)

    def _verify(self, known_hash: str | None, password: str) -> bool:
        with self._slots:
            try:
                # What is far too long is cut, and then wrong: hashing it would take as long as it is.
                return HASHER.verify(known_hash or _nobodys(), _bytes(password)[: MAX_PASSWORD + 1])
            except VerificationError:
                return False

    def _proof(self, name: str, password: str) -> bytes:
        # Of a random key: what lies in memory is no use to who reads it, and no password can be tried against it later.
        return hmac.digest(self._key, _bytes(name) + b"\0" + _bytes(password), hashlib.sha256)

    def _is_remembered(self, proof: bytes, known_hash: str) -> bool:
        with self._lock:
            remembered = self._remembered.get(proof)
            # A password that was changed, here or elsewhere, has another hash.
            return remembered is not None and remembered[0] == known_hash and remembered[1] > self._clock()

    def _remember(self, proof: bytes, known_hash: str) -> None:
        with self._lock:
            self._remembered[proof] = (known_hash, self._clock() + REMEMBERED_S)
            self._remembered.move_to_end(proof)
            while len(self._remembered) > MAX_REMEMBERED:
                self._remembered.popitem(last=False)

    def _failed(self, name: str, address: str, *, known: bool) -> None:
        first_of_name = self._by_name.failed(name[:64])
        first_of_address = self._by_address.failed(address)
        if first_of_name or first_of_address:
            # Only names that somebody has: a name that nobody has may be a password in the wrong field.
            with suppress(Unavailable), self._database.begin() as work:
                work.accounts.record_failed_login(name if known else None)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@functools.cache
def _nobodys() -> str:
    """Return what a password is compared with where there is none: the hash of one that nobody knows."""
    return HASHER.hash(secrets.token_bytes(32))


def _network_of(address: str) -> str:
    """Return whom an address belongs to: of IPv6, everybody has as many as they like below 64 bits."""
    with suppress(ValueError):
        parsed = ipaddress.ip_address(address)
        if parsed.version == 6 and parsed.ipv4_mapped is None:  # noqa: PLR2004 - the version's name
            return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
