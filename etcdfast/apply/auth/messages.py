"""authpb messages and the auth requests of an InternalRaftRequest, read and written on bytes.

Names are bytes here: etcd up to 3.5 took any bytes as a name, and a log or snapshot of its may hold them; the protobuf
runtime would refuse to read the entry. What is written equals etcd's bytes: ascending fields, zeros left out.

Source: reference/formats.md sections 3.2 and 6.4.
"""

from collections import namedtuple

from etcdfast._ext.wire import WireError, fields, varint

READ, WRITE, READWRITE = range(3)
ALL_KEYS = b"\0"  # as range_end: from the key on

Permission = namedtuple("Permission", "type key range_end", defaults=(READ, b"", b""))
# no_password: None for a user without options, as etcd 3.3 wrote them
User = namedtuple("User", "name password roles no_password", defaults=(b"", (), False))
Role = namedtuple("Role", "name permissions", defaults=((),))


def _bytes(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def _some(number, data):
    return _bytes(number, data) if data else b""


def _number(number, value):
    return varint(number << 3) + varint(value) if value else b""


def _last(message, numbers):
    """{number: the last value} of fields of length-delimited type. Errors: WireError."""
    return {number: value for number, _, value in fields(message) if number in numbers and type(value) is bytes}


def texts(message, *numbers):
    """The values of byte fields in the order asked for, b"" where absent. Errors: WireError."""
    found = _last(message, numbers)
    return tuple(found.get(number, b"") for number in numbers)


def _int32(value):
    """An enum as it would be written again: 32 bits, sign extended."""
    value &= 0xFFFFFFFF
    return value | 0xFFFFFFFF00000000 if value >> 31 else value


# ---- what the buckets hold ----


def encode_permission(perm):
    return _number(1, perm.type) + _some(2, perm.key) + _some(3, perm.range_end)


def decode_permission(message):
    """Errors: WireError."""
    kind, key, range_end = READ, b"", b""
    for number, _, value in fields(message):
        if number == 1 and type(value) is int:
            kind = _int32(value)
        elif number == 2 and type(value) is bytes:
            key = value
        elif number == 3 and type(value) is bytes:
            range_end = value
    return Permission(kind, key, range_end)


def encode_user(user):
    options = b""
    if user.no_password is not None:
        options = _bytes(4, _number(1, int(user.no_password)))
    return _some(1, user.name) + _some(2, user.password) + b"".join(_bytes(3, role) for role in user.roles) + options


def decode_user(message):
    """Errors: WireError."""
    name = password = b""
    roles, no_password = [], None
    for number, _, value in fields(message):
        if type(value) is not bytes:
            continue
        if number == 1:
            name = value
        elif number == 2:
            password = value
        elif number == 3:
            roles.append(value)
        elif number == 4:
            no_password = _no_password(value, bool(no_password))
    return User(name, password, tuple(roles), no_password)


def _no_password(options, before=False):
    for number, _, value in fields(options):
        if number == 1 and type(value) is int:
            before = value != 0
    return before


def encode_role(role):
    return _some(1, role.name) + b"".join(_bytes(2, encode_permission(perm)) for perm in role.permissions)


def decode_role(message):
    """Errors: WireError."""
    name, permissions = b"", []
    for number, _, value in fields(message):
        if number == 1 and type(value) is bytes:
            name = value
        elif number == 2 and type(value) is bytes:
            permissions.append(decode_permission(value))
    return Role(name, tuple(permissions))


# ---- requests ----


def header(message):
    """(user, auth revision) of a RequestHeader. Errors: WireError."""
    user, revision = b"", 0
    for number, _, value in fields(message):
        if number == 2 and type(value) is bytes:
            user = value
        elif number == 3 and type(value) is int:
            revision = value
    return user, revision


def internal(message):
    """(number of the request's field, its bytes, header's bytes) of an InternalRaftRequest; number 0 for none.

    Errors: WireError, also when it holds several requests."""
    found, request, head = 0, b"", b""
    for number, _, value in fields(message):
        if number == 100 and type(value) is bytes:
            head += value  # a message in two parts is merged, and parsing the joined bytes does that
        elif number != 1 and type(value) is bytes:
            if found not in (0, number):
                raise WireError(f"two requests in one entry: {found} and {number}")
            found = number
            request += value
    return found, request, head


def user_add(message):
    """(name, password, no_password or None, hashed password) of an AuthUserAddRequest. Errors: WireError."""
    name, password, hashed = texts(message, 1, 2, 4)
    no_password = None
    for number, _, value in fields(message):
        if number == 3 and type(value) is bytes:
            no_password = _no_password(value, bool(no_password))
    return name, password, no_password, hashed


def encode_user_add(name, no_password, hashed):
    """With the password taken out."""
    options = b"" if no_password is None else _bytes(3, _number(1, int(no_password)))
    return _some(1, name) + options + _some(4, hashed)


def encode_change_password(name, hashed):
    return _some(1, name) + _some(3, hashed)


def encode_authenticate(name, simple_token):
    """InternalAuthenticateRequest."""
    return _some(1, name) + _some(3, simple_token)


def grant_permission(message):
    """(role, Permission or None) of an AuthRoleGrantPermissionRequest. Errors: WireError."""
    role, perm = b"", None
    for number, _, value in fields(message):
        if number == 1 and type(value) is bytes:
            role = value
        elif number == 2 and type(value) is bytes:
            perm = value if perm is None else perm + value
    return role, None if perm is None else decode_permission(perm)


# ---- answers, all but their header ----


def names_answer(names):
    """AuthUserGetResponse, AuthUserListResponse, AuthRoleListResponse: names in field 2."""
    return b"".join(_bytes(2, name) for name in names)


def role_answer(permissions):
    return b"".join(_bytes(2, encode_permission(perm)) for perm in permissions)


def token_answer(token):
    return _some(2, token)


def status_answer(enabled, revision):
    return _number(2, int(enabled)) + _number(3, revision)


def with_header(header_bytes, answer):
    return _bytes(1, header_bytes) + answer
