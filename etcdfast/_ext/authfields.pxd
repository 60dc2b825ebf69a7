"""Fields of an InternalRaftRequest that carry the requests of the Auth service (reference/formats.md 3.1)."""

from libc.stdint cimport uint8_t, uint32_t

from etcdfast._ext.rpcids cimport (
    RPC_AUTH_DISABLE, RPC_AUTH_ENABLE, RPC_AUTH_STATUS, RPC_AUTHENTICATE, RPC_ROLE_ADD, RPC_ROLE_DELETE, RPC_ROLE_GET,
    RPC_ROLE_GRANT_PERMISSION, RPC_ROLE_LIST, RPC_ROLE_REVOKE_PERMISSION, RPC_USER_ADD, RPC_USER_CHANGE_PASSWORD,
    RPC_USER_DELETE, RPC_USER_GET, RPC_USER_GRANT_ROLE, RPC_USER_LIST, RPC_USER_REVOKE_ROLE,
)


cdef inline uint32_t auth_field(uint8_t method) noexcept nogil:
    """0 for a method of another service. Of AUTHENTICATE the payload is an InternalAuthenticateRequest."""
    if not RPC_AUTH_ENABLE <= method <= RPC_ROLE_REVOKE_PERMISSION:
        return 0
    if method == RPC_AUTH_ENABLE:
        return 1000
    if method == RPC_AUTH_DISABLE:
        return 1011
    if method == RPC_AUTHENTICATE:
        return 1012
    if method == RPC_AUTH_STATUS:
        return 1013
    if method == RPC_USER_ADD:
        return 1100
    if method == RPC_USER_DELETE:
        return 1101
    if method == RPC_USER_GET:
        return 1102
    if method == RPC_USER_CHANGE_PASSWORD:
        return 1103
    if method == RPC_USER_GRANT_ROLE:
        return 1104
    if method == RPC_USER_REVOKE_ROLE:
        return 1105
    if method == RPC_USER_LIST:
        return 1106
    if method == RPC_ROLE_LIST:
        return 1107
    if method == RPC_ROLE_ADD:
        return 1200
    if method == RPC_ROLE_DELETE:
        return 1201
    if method == RPC_ROLE_GET:
        return 1202
    if method == RPC_ROLE_GRANT_PERMISSION:
        return 1203
    return 1204
