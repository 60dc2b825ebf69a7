"""etcd's errors: one row per error, with its id, gRPC code and exact text.

An id is one byte on the rings; `etcdfast/_ext/errids.pxd` holds the same ids for Cython. Ids are not
stored and not sent to clients, so a new row may go anywhere as long as ids stay contiguous.
Source: etcd's `api/v3rpc/rpctypes` for code and text, and reference/etcd-behaviour.md section 5;
gotchas G1 and G2 there explain the three rows whose code is UNKNOWN.
"""

from collections import namedtuple

OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16


# id: index of the row; symbol: ERR_<symbol> in C; code: gRPC status code;
# text: exactly as sent in grpc-message, before percent encoding.
ErrorRow = namedtuple("ErrorRow", "id symbol code text")

_TABLE = (
    ("NONE", OK, ""),
    # requests
    ("EMPTY_KEY", INVALID_ARGUMENT, "etcdserver: key is not provided"),
    ("KEY_NOT_FOUND", INVALID_ARGUMENT, "etcdserver: key not found"),
    ("VALUE_PROVIDED", INVALID_ARGUMENT, "etcdserver: value is provided"),
    ("LEASE_PROVIDED", INVALID_ARGUMENT, "etcdserver: lease is provided"),
    ("TOO_MANY_OPS", INVALID_ARGUMENT, "etcdserver: too many operations in txn request"),
    ("DUPLICATE_KEY", INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request"),
    ("INVALID_CLIENT_API_VERSION", INVALID_ARGUMENT, "etcdserver: invalid client api version"),
    ("INVALID_SORT_OPTION", INVALID_ARGUMENT, "etcdserver: invalid sort option"),
    ("COMPACTED", OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted"),
    ("FUTURE_REV", OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision"),
    ("NO_SPACE", RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded"),
    ("REQUEST_TOO_LARGE", INVALID_ARGUMENT, "etcdserver: request is too large"),
    ("TOO_MANY_REQUESTS", UNKNOWN, "etcdserver: too many requests"),
    ("RANGE_STREAM_SORT", UNIMPLEMENTED, "RangeStream does not support custom sort orders"),
    ("RANGE_STREAM_FILTER", UNIMPLEMENTED, "RangeStream does not support revision filters"),
    # leases
    ("LEASE_NOT_FOUND", NOT_FOUND, "etcdserver: requested lease not found"),
    ("LEASE_EXIST", FAILED_PRECONDITION, "etcdserver: lease already exists"),
    ("LEASE_TTL_TOO_LARGE", OUT_OF_RANGE, "etcdserver: too large lease TTL"),
    # watch; the last two are only ever a cancel_reason
    ("WATCH_CANCELED", CANCELLED, "etcdserver: watch canceled"),
    ("WATCH_EMPTY_RANGE", UNKNOWN, "mvcc: watcher range is empty"),
    ("WATCH_DUPLICATE_ID", UNKNOWN, "mvcc: duplicate watch ID provided on the WatchStream"),
    # membership
    ("MEMBER_EXIST", FAILED_PRECONDITION, "etcdserver: member ID already exist"),
    ("PEER_URL_EXIST", FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"),
    (
        "MEMBER_NOT_ENOUGH_STARTED",
        UNKNOWN,
        "etcdserver: re-configuration failed due to not enough started members",
    ),
    ("MEMBER_BAD_URLS", INVALID_ARGUMENT, "etcdserver: given member URLs are invalid"),
    ("MEMBER_NOT_FOUND", NOT_FOUND, "etcdserver: member not found"),
    ("MEMBER_NOT_LEARNER", FAILED_PRECONDITION, "etcdserver: can only promote a learner member"),
    (
        "LEARNER_NOT_READY",
        FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    ),
    ("TOO_MANY_LEARNERS", FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"),
    ("CLUSTER_ID_MISMATCH", FAILED_PRECONDITION, "etcdserver: cluster ID mismatch"),
    # auth
    ("ROOT_USER_NOT_EXIST", FAILED_PRECONDITION, "etcdserver: root user does not exist"),
    ("ROOT_ROLE_NOT_EXIST", FAILED_PRECONDITION, "etcdserver: root user does not have root role"),
    ("USER_ALREADY_EXIST", FAILED_PRECONDITION, "etcdserver: user name already exists"),
    ("USER_EMPTY", INVALID_ARGUMENT, "etcdserver: user name is empty"),
    ("USER_NOT_FOUND", FAILED_PRECONDITION, "etcdserver: user name not found"),
    ("ROLE_ALREADY_EXIST", FAILED_PRECONDITION, "etcdserver: role name already exists"),
    ("ROLE_NOT_FOUND", FAILED_PRECONDITION, "etcdserver: role name not found"),
    ("ROLE_EMPTY", INVALID_ARGUMENT, "etcdserver: role name is empty"),
    ("AUTH_FAILED", INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password"),
    ("PERMISSION_NOT_GIVEN", INVALID_ARGUMENT, "etcdserver: permission not given"),
    ("PERMISSION_DENIED", PERMISSION_DENIED, "etcdserver: permission denied"),
    ("ROLE_NOT_GRANTED", FAILED_PRECONDITION, "etcdserver: role is not granted to the user"),
    ("PERMISSION_NOT_GRANTED", FAILED_PRECONDITION, "etcdserver: permission is not granted to the role"),
    ("AUTH_NOT_ENABLED", FAILED_PRECONDITION, "etcdserver: authentication is not enabled"),
    ("INVALID_AUTH_TOKEN", UNAUTHENTICATED, "etcdserver: invalid auth token"),
    ("INVALID_AUTH_MGMT", INVALID_ARGUMENT, "etcdserver: invalid auth management"),
    ("AUTH_OLD_REVISION", INVALID_ARGUMENT, "etcdserver: revision of auth store is old"),
    # cluster state
    ("NO_LEADER", UNAVAILABLE, "etcdserver: no leader"),
    ("NOT_LEADER", FAILED_PRECONDITION, "etcdserver: not leader"),
    ("LEADER_CHANGED", UNAVAILABLE, "etcdserver: leader changed"),
    ("NOT_CAPABLE", FAILED_PRECONDITION, "etcdserver: not capable"),
    ("STOPPED", UNAVAILABLE, "etcdserver: server stopped"),
    ("TIMEOUT", UNAVAILABLE, "etcdserver: request timed out"),
    (
        "TIMEOUT_LEADER_FAIL",
        UNAVAILABLE,
        "etcdserver: request timed out, possibly due to previous leader failure",
    ),
    (
        "TIMEOUT_CONNECTION_LOST",
        UNAVAILABLE,
        "etcdserver: request timed out, possibly due to connection lost",
    ),
    (
        "TIMEOUT_APPLIED_INDEX",
        UNAVAILABLE,
        "etcdserver: request timed out, waiting for the applied index took too long",
    ),
    ("TIMEOUT_LEADER_TRANSFER", UNKNOWN, "etcdserver: request timed out, leader transfer took too long"),
    ("UNHEALTHY", UNAVAILABLE, "etcdserver: unhealthy cluster"),
    ("CORRUPT", DATA_LOSS, "etcdserver: corrupt cluster"),
    ("NOT_SUPPORTED_FOR_LEARNER", FAILED_PRECONDITION, "etcdserver: rpc not supported for learner"),
    ("BAD_LEADER_TRANSFEREE", FAILED_PRECONDITION, "etcdserver: bad leader transferee"),
    # downgrade
    ("WRONG_DOWNGRADE_VERSION_FORMAT", INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"),
    ("INVALID_DOWNGRADE_TARGET_VERSION", INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"),
    (
        "CLUSTER_VERSION_UNAVAILABLE",
        FAILED_PRECONDITION,
        "etcdserver: cluster version not found during downgrade",
    ),
    ("DOWNGRADE_IN_PROCESS", FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress"),
    ("NO_INFLIGHT_DOWNGRADE", FAILED_PRECONDITION, "etcdserver: no inflight downgrade job"),
    # without a text of etcd's: the payload of the REPLY record says what it is
    ("UNKNOWN", UNKNOWN, "etcdserver: unknown error"),
    ("UNIMPLEMENTED", UNIMPLEMENTED, "unknown method"),
    ("INTERNAL", INTERNAL, "internal error"),
    # the caller's own context
    ("CANCELED", CANCELLED, "etcdserver: request canceled"),
    ("DEADLINE", DEADLINE_EXCEEDED, "etcdserver: context deadline exceeded"),
)

ERRORS = tuple(ErrorRow(i, *row) for i, row in enumerate(_TABLE))
ID = {row.symbol: row.id for row in ERRORS}


class EtcdError(Exception):
    """An answer that is an error of the table. `EtcdError("COMPACTED")`; .id, .code and .text tell which."""

    def __init__(self, symbol):
        row = ERRORS[ID[symbol]]
        super().__init__(row.text)
        self.id = row.id
        self.symbol = symbol
        self.code = row.code
        self.text = row.text
