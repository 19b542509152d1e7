"""Who somebody is, by password or token, and what an administrator does about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from statistics import median

import pytest
from argon2 import PasswordHasher

from morpheo import logins as module
from morpheo.access import TOKEN, Principal, Role, Scope
from morpheo.accounts import MAX_TOKEN_LIFE, Accounts
from morpheo.errors import Conflict, InvalidInput, NotFound, SettingsError, Throttled
from morpheo.logins import FREE_BY_ADDRESS, FREE_BY_NAME, LONGEST_WAIT_S, REMEMBERED_S, Logins, _network_of
from morpheo.storage.database import Database
from tests.support.trail import told

PASSWORD = "correct horse battery"
DAY = timedelta(days=1)


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def accounts(database: Database) -> Accounts:
    accounts = Accounts(database)
    accounts.add("alice", [Role.SUBMITTER], PASSWORD)
    return accounts


@pytest.fixture
def logins(database: Database, clock: Clock) -> Logins:
    return Logins(database, ("root", "s3cret"), clock=clock)


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What argon2 is asked."""
    asked: list[object] = []
    real = module.HASHER.verify

    class Counting:
        def hash(self, password: bytes) -> str:
            return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(password)

        def verify(self, known: str, password: bytes) -> bool:
            asked.append(known)
            return real(known, password)

    monkeypatch.setattr(module, "HASHER", Counting())
    return asked


def login(logins: Logins, name: str, password: str, address: str = "10.0.0.1") -> Principal | None:
    return logins.with_password(name, password, address=address)


def test_a_password_says_who_it_is(accounts: Accounts, logins: Logins) -> None:
    assert login(logins, "alice", PASSWORD) == Principal(name="alice", roles=frozenset({Role.SUBMITTER}))
    assert login(logins, "root", "s3cret") == Principal(name="root", roles=frozenset({Role.ADMIN}))


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("alice", PASSWORD[:-1]), ("alice", PASSWORD + "x"), ("alice", ""), ("bob", PASSWORD), ("", ""), ("root", ""),
        ("root", PASSWORD), ("alice\0", PASSWORD), ("ä" * 10_000, "x" * 100_000), ("' OR 1=1 --", "x"),
        ("\ud800", "\ud800"),
    ],
)  # fmt: skip
def test_all_else_is_nobody(accounts: Accounts, logins: Logins, name: str, password: str) -> None:
    assert login(logins, name, password) is None


def test_without_a_password_of_the_settings_there_is_no_such_user(database: Database) -> None:
    logins = Logins(database, ("u", ""))
    assert login(logins, "u", "") is None
    assert login(logins, "u", "p") is None


def test_a_wrong_password_and_an_unknown_name_are_checked_alike(
    accounts: Accounts, logins: Logins, checked: list[object]
) -> None:
    for name in ("alice", "nobody", "root", "no\0name"):
        assert login(logins, name, "wrong") is None
        assert len(checked) == 1
        checked.clear()


def test_a_password_that_was_right_is_not_checked_again_for_a_while(
    accounts: Accounts, logins: Logins, clock: Clock, checked: list[object]
) -> None:
    for _ in range(3):
        assert login(logins, "alice", PASSWORD)
    assert len(checked) == 1
    clock.now += REMEMBERED_S + 1
    assert login(logins, "alice", PASSWORD)
    assert len(checked) == 2


def test_what_is_remembered_ends_with_the_password_the_roles_and_the_user(accounts: Accounts, logins: Logins) -> None:
    assert login(logins, "alice", PASSWORD)
    accounts.set_roles("alice", [Role.READER])
    found = login(logins, "alice", PASSWORD)
    assert found is not None
    assert found.roles == {Role.READER}
    accounts.set_disabled("alice", disabled=True)
    assert login(logins, "alice", PASSWORD) is None
    accounts.set_disabled("alice", disabled=False)
    assert login(logins, "alice", PASSWORD)
    accounts.set_password("alice", "another password")
    assert login(logins, "alice", PASSWORD) is None
    assert login(logins, "alice", "another password")
    accounts.set_password("alice", None)
    assert login(logins, "alice", "another password") is None


def fail(logins: Logins, times: int, name: str = "alice", address: str = "10.0.0.1") -> None:
    for _ in range(times):
        assert login(logins, name, "wrong", address) is None


def test_logins_that_fail_have_to_wait_also_with_the_right_password(
    accounts: Accounts, logins: Logins, clock: Clock
) -> None:
    fail(logins, FREE_BY_NAME + 1)
    for name, password in (("alice", PASSWORD), ("alice", "wrong")):
        with pytest.raises(Throttled) as caught:
            login(logins, name, password, "10.9.9.9")
        assert caught.value.retry_after_s == 1
    clock.now += 1
    assert login(logins, "alice", PASSWORD)
    fail(logins, FREE_BY_NAME)  # it has begun anew


@pytest.mark.parametrize("name", ["root", "alice"])
def test_who_was_let_in_is_not_kept_out_by_others_who_fail(accounts: Accounts, logins: Logins, name: str) -> None:
    password = {"root": "s3cret", "alice": PASSWORD}[name]
    assert login(logins, name, password)
    fail(logins, FREE_BY_NAME + 1, name, "10.6.6.6")
    with pytest.raises(Throttled):
        login(logins, name, "wrong")
    assert login(logins, name, password)


def test_the_password_of_the_settings_cannot_be_tried_without_end(logins: Logins) -> None:
    fail(logins, FREE_BY_NAME + 1, "root")
    with pytest.raises(Throttled):
        login(logins, "root", "s3cret")


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_of_ipv6_a_network_counts_as_one_address(address: str, network: str) -> None:
    assert _network_of(address) == network


def test_an_address_that_tries_many_names_has_to_wait(accounts: Accounts, logins: Logins, clock: Clock) -> None:
    for number in range(FREE_BY_ADDRESS + 1):
        fail(logins, 1, f"name{number}")
    with pytest.raises(Throttled):
        login(logins, "alice", PASSWORD)
    assert login(logins, "alice", PASSWORD, "10.0.0.2")
    assert LONGEST_WAIT_S <= 60  # for no longer can an attacker keep others of an address out


def test_the_trail_tells_of_logins_that_fail_once_and_names_no_unknown_name(
    accounts: Accounts, logins: Logins, database: Database, clock: Clock
) -> None:
    for name in ("alice", "hunter2isMyPassword"):
        for _ in range(FREE_BY_NAME + 4):
            fail(logins, 1, name, f"of {name}")
            clock.now += LONGEST_WAIT_S
    events = [event for event in told(database) if event.action == "login.failed"]
    assert [event.subject for event in events] == ["user alice", "user unknown"]
    assert "hunter2" not in str(told(database))


# Tokens.


def test_a_token_is_its_user_with_no_more_than_its_roles_and_scopes(accounts: Accounts, logins: Logins) -> None:
    accounts.set_roles("alice", [Role.SUBMITTER, Role.CUSTODIAN])
    token, secret = accounts.create_token("alice", name="ci", life=DAY, roles=[Role.SUBMITTER], scopes=[Scope.READ])
    assert TOKEN.fullmatch(secret)
    found = logins.with_token(secret)
    assert found == Principal(
        name="alice", roles=frozenset({Role.SUBMITTER}), scopes=frozenset({Scope.READ}), token=token.id
    )
    accounts.set_roles("alice", [Role.CUSTODIAN])
    found = logins.with_token(secret)
    assert found is not None
    assert not found.roles


def test_a_token_is_kept_as_a_digest_and_known_to_its_second_of_use(
    accounts: Accounts, logins: Logins, database: Database
) -> None:
    token, secret = accounts.create_token("alice", name="", life=DAY)
    assert accounts.tokens()[0].last_used_at is None
    assert logins.with_token(secret)
    first = accounts.tokens("alice")[0].last_used_at
    assert first is not None
    assert logins.with_token(secret)
    assert accounts.tokens("alice")[0].last_used_at == first  # not each use is a write
    with database.connect() as connection:
        rows = str(connection.exec_driver_sql("SELECT * FROM tokens").all())
    assert secret not in rows
    assert secret.removeprefix("morpheo_") not in rows
    assert token.id in rows


@pytest.mark.parametrize(
    "end",
    [
        lambda accounts, token: accounts.revoke(token),
        lambda accounts, _token: accounts.set_disabled("alice", disabled=True),
    ],
    ids=["revoked", "user disabled"],
)
def test_a_token_ends(accounts: Accounts, logins: Logins, end: Callable[[Accounts, str], object]) -> None:
    token, secret = accounts.create_token("alice", name="", life=DAY)
    assert logins.with_token(secret)
    end(accounts, token.id)
    assert logins.with_token(secret) is None


def test_a_token_expires(accounts: Accounts, logins: Logins) -> None:
    _token, secret = accounts.create_token("alice", name="", life=timedelta(microseconds=1))
    assert logins.with_token(secret) is None


@pytest.mark.parametrize("secret", ["", "morpheo_", "morpheo_" + "a" * 43, "morpheo_" + "ä" * 43, "x" * 100_000])
def test_nothing_else_is_a_token(accounts: Accounts, logins: Logins, secret: str) -> None:
    assert logins.with_token(secret) is None


def test_what_cannot_be(accounts: Accounts) -> None:
    with pytest.raises(InvalidInput, match="has not the role admin"):
        accounts.create_token("alice", name="", life=DAY, roles=[Role.ADMIN])
    with pytest.raises(InvalidInput, match="at most 366 days"):
        accounts.create_token("alice", name="", life=MAX_TOKEN_LIFE + DAY)
    with pytest.raises(InvalidInput, match="12 letters"):
        accounts.add("bob", [Role.READER], "short")
    with pytest.raises(InvalidInput, match="12 letters"):
        accounts.set_password("alice", "short")
    for name in ("", "a b", "-a", "a\n", "ä", "a" * 65, "orchestrator-of-2017"):
        with pytest.raises(InvalidInput, match="user's name"):
            accounts.add(name, [Role.READER], None)
    with pytest.raises(Conflict, match="there is a user alice"):
        accounts.add("alice", [Role.READER], None)
    for act in (
        lambda: accounts.set_password("bob", PASSWORD),
        lambda: accounts.set_roles("bob", []),
        lambda: accounts.set_disabled("bob", disabled=True),
        lambda: accounts.create_token("bob", name="", life=DAY),
        lambda: accounts.revoke("00000000"),
    ):
        with pytest.raises(NotFound):
            act()


def test_the_trail_tells_of_users_and_tokens_without_secrets(accounts: Accounts, database: Database) -> None:
    accounts.set_roles("alice", [Role.READER])
    accounts.set_password("alice", "another password")
    accounts.set_disabled("alice", disabled=True)
    token, secret = accounts.create_token("alice", name="", life=DAY)
    assert accounts.revoke(token.id)
    assert not accounts.revoke(token.id)
    events = told(database)
    assert [(event.action, event.subject) for event in events] == [
        ("user.added", "user alice"),
        ("user.changed", "user alice"),
        ("user.changed", "user alice"),
        ("user.changed", "user alice"),
        ("token.created", f"token {token.id}"),
        ("token.revoked", f"token {token.id}"),
    ]
    for hidden in (secret, "another password", PASSWORD, "argon2"):
        assert hidden not in str(events)


def test_a_service_starts_only_if_somebody_can_log_in(database: Database) -> None:
    accounts = Accounts(database)
    with pytest.raises(SettingsError, match="morpheo user add NAME --role admin"):
        accounts.require_somebody("")
    accounts.require_somebody("x")
    accounts.add("alice", [Role.ADMIN], PASSWORD)
    accounts.require_somebody("")
    accounts.set_disabled("alice", disabled=True)
    with pytest.raises(SettingsError):
        accounts.require_somebody("")


def test_an_unknown_name_takes_as_long_as_a_wrong_password(accounts: Accounts, database: Database) -> None:
    """By the median, within a factor that one argon2 more or less would exceed."""

    times: dict[str, list[float]] = {"alice": [], "nobody": []}
    for number in range(7):
        for name, taken in times.items():  # in turns, since other programs come and go
            logins = Logins(database, ("root", "s3cret"))
            start = time.thread_time()
            assert login(logins, name, f"wrong{number}") is None
            taken.append(time.thread_time() - start)
    assert 0.5 < median(times["alice"]) / median(times["nobody"]) < 2
