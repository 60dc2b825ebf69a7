SLOTS_DEFAULT: int
NAME_BYTES_MAX: int

class TokenError(Exception): ...

def format_tokens(fd: int, slots: int = ...) -> None:
    """Make the memfd `fd` an empty table, under a secret of its own. Errors: TokenError."""

class TokenReader:
    """A frontend's side. Errors: TokenError when fd is no table."""

    def __init__(self, fd: int) -> None: ...
    def find(self, token: bytes, now_ns: int) -> tuple[bytes, int] | None:
        """(user, auth revision; 0: the current one) of a valid token, which is stamped as used; else None."""

class TokenPage:
    """Apply's side: every valid token, and the shared table as a cache of them. Times: CLOCK_MONOTONIC ns.

    More than `tokens_max` tokens: those go first that were not used for the longest time.
    """

    def __init__(self, fd: int, tokens_max: int = ...) -> None: ...
    def put(
        self, token: bytes, user: bytes, now_ns: int, *, revision: int = 0, ttl_ns: int = 0, expires_ns: int = 0
    ) -> None:
        """A token that is valid from now on: `ttl_ns` after each use (simple tokens), until `expires_ns` (JWT).

        `revision` of the auth store it was made at, 0: it counts at any. Frontends see it when this returns.
        Errors: TokenError for a name longer than NAME_BYTES_MAX.
        """

    def get(self, token: bytes, now_ns: int) -> tuple[bytes, int] | None:
        """(user, revision) of a valid token, else None. A token that had lost its place in the shared table gets it
        back: this is what an unknown token at a frontend is answered with."""

    def remove(self, token: bytes) -> bool: ...
    def remove_user(self, user: bytes) -> int:
        """All tokens of a user. How many there were."""

    def clear(self) -> None: ...
    def expire(self, now_ns: int) -> list[bytes]:
        """Forget and return the tokens whose time is over. Cheap when none is due."""

    next_due_ns: int
    """When expire() may have something to do, 0 never."""

    def __len__(self) -> int: ...
    def __contains__(self, token: bytes) -> bool: ...
