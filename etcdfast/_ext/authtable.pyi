from collections.abc import Iterable

READ: int
WRITE: int
READWRITE: int

class AuthTable:
    """Users and their permissions, as C checks them. Empty and disabled at first."""

    enabled: bool
    revision: int
    count: int

    def set_enabled(self, enabled: bool, revision: int) -> None:
        """State of the auth store; identities older than `revision` are refused. Call at each change of it: the
        frontends see both when the turn's batch is written, before its answers leave."""

    def set_user(self, name: bytes, is_root: bool, permissions: Iterable[tuple[int, bytes, bytes]] = ()) -> None:
        """A user with the permissions of all of its roles: (READ, WRITE or READWRITE as in authpb, key, range_end).
        Replaces what it had."""

    def remove_user(self, name: bytes) -> bool: ...
    def clear(self) -> None:
        """Forget all users; enabled and revision stay."""

    # Checks: 0, or the error id (api/errors.py). `revision` 0: there is no identity.
    def may_read(self, name: bytes, revision: int, key: bytes, range_end: bytes = b"") -> int: ...
    def may_write(self, name: bytes, revision: int, key: bytes, range_end: bytes = b"") -> int: ...
    def may_administer(self, name: bytes) -> int:
        """For root-only requests. In etcd the revision does not count here."""

    def ranges(self, name: bytes) -> tuple[list[tuple[bytes, bytes]], list[tuple[bytes, bytes]]] | None:
        """Merged (read, write) intervals of a user, for tests and for people: [(begin, end; empty: open)]."""
