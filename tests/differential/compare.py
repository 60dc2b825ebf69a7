"""Field by field comparison of two replies to one request.

The only freedom given is the one etcd itself leaves open: a sort by anything but the key is not
stable, so equal elements may come in any order, and a limit may cut anywhere among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from tests.harness import Reply, pb

Message = Any
# Key -> KeyValue (with its value) of the whole store at the revision a Range was answered at.
Contents = Callable[[Message, int], dict[bytes, Message]]

_MESSAGE = FieldDescriptor.TYPE_MESSAGE


@dataclass(frozen=True, slots=True)
class Difference:
    """One field that differs: where, and what each side has there."""

    path: str
    left: Any
    right: Any

    def __str__(self) -> str:
        return f"{self.path}: etcd {_short(self.left)} | other {_short(self.right)}"


def compare_replies(
    method: str,
    request: Message,
    left: Reply,
    right: Reply,
    contents: Contents | None = None,
) -> list[Difference]:
    """All differences between two replies to `request`; left is the reference.

    `contents`, when given, looks up the reference's store at a revision; it decides the one case
    the replies alone cannot: which elements a limit may leave of a group with equal sort keys.
    """
    if (left.code, left.text) != (right.code, right.text):
        found = []
        if left.code != right.code:
            found.append(Difference("code", left.code, right.code))
        if left.text != right.text:
            found.append(Difference("text", left.text, right.text))
        return found
    if not left.ok or left.data == right.data:
        return []
    one, other = left.message, right.message
    if method == "Range":
        return list(_range(request, one, other, "", contents))
    if method == "Txn":
        return list(_txn(request, one, other, ""))
    return list(_messages(one, other, "")) or _same_bytes(one, other)


def _same_bytes(left: Message, right: Message) -> list[Difference]:
    """Fields outside the schema show only in the encoding."""
    one = left.SerializeToString(deterministic=True)
    other = right.SerializeToString(deterministic=True)
    return [] if one == other else [Difference("(unknown fields)", one, other)]


def _messages(left: Message, right: Message, path: str, skip: Iterable[str] = ()) -> Iterable[Difference]:
    for field in left.DESCRIPTOR.fields:
        name = field.name
        if name in skip:
            continue
        here = f"{path}.{name}" if path else name
        one, other = getattr(left, name), getattr(right, name)
        if field.is_repeated:
            yield from _lists(one, other, here, field.type == _MESSAGE)
        elif field.type == _MESSAGE:
            has, other_has = left.HasField(name), right.HasField(name)
            if has != other_has:
                yield Difference(here, one if has else None, other if other_has else None)
            elif has:
                yield from _messages(one, other, here)
        elif one != other:
            yield Difference(here, one, other)


def _lists(left: Any, right: Any, path: str, of_messages: bool) -> Iterable[Difference]:
    if len(left) != len(right):
        yield Difference(f"len({path})", len(left), len(right))
    for number, (one, other) in enumerate(zip(left, right)):
        if of_messages:
            yield from _messages(one, other, f"{path}[{number}]")
        elif one != other:
            yield Difference(f"{path}[{number}]", one, other)


def _txn(request: Message, left: Message, right: Message, path: str) -> Iterable[Difference]:
    """A txn's responses belong to the operations of the branch taken, one to one."""
    prefix = f"{path}." if path else ""
    yield from _messages(left, right, path, skip=("responses",))
    if len(left.responses) != len(right.responses):
        yield Difference(f"len({prefix}responses)", len(left.responses), len(right.responses))
        return
    operations = request.success if left.succeeded else request.failure
    if len(operations) != len(left.responses):
        yield from _lists(left.responses, right.responses, f"{prefix}responses", True)
        return
    for number, (operation, one, other) in enumerate(zip(operations, left.responses, right.responses)):
        here = f"{prefix}responses[{number}]"
        kinds = one.WhichOneof("response"), other.WhichOneof("response")
        if kinds[0] != kinds[1]:
            yield Difference(here, *kinds)
        elif kinds[0] == "response_range":
            yield from _range(operation.request_range, one.response_range, other.response_range, here, None)
        elif kinds[0] == "response_txn":
            yield from _txn(operation.request_txn, one.response_txn, other.response_txn, here)
        else:
            yield from _messages(one, other, here)


# -- Range and its unstable sorts ---------------------------------------------------------------

_SORT_FIELD = {1: "version", 2: "create_revision", 3: "mod_revision", 4: "value"}


def _range(
    request: Message, left: Message, right: Message, path: str, contents: Contents | None
) -> Iterable[Difference]:
    yield from _messages(left, right, path, skip=("kvs",))
    here = f"{path}.kvs" if path else "kvs"
    exact = list(_lists(left.kvs, right.kvs, here, True))
    field = _SORT_FIELD.get(request.sort_target)
    if not exact or field is None or len(left.kvs) != len(right.kvs):
        yield from exact
        return
    yield from _tied(request, field, left, right, here, contents)


def _tied(
    request: Message, field: str, left: Message, right: Message, path: str, contents: Contents | None
) -> Iterable[Difference]:
    """Equal up to the order of elements with equal sort keys, and to which of them a limit left."""
    stored: dict[bytes, Message] = {}
    if contents is not None:
        stored = contents(request, left.header.revision)
        sort_keys = [
            [getattr(stored[kv.key], field) if kv.key in stored else None for kv in side.kvs] for side in (left, right)
        ]
    elif request.keys_only and field == "value":
        sort_keys = [[b""] * len(left.kvs), [b""] * len(right.kvs)]  # not to be seen from outside
    else:
        sort_keys = [[getattr(kv, field) for kv in side.kvs] for side in (left, right)]
    if sort_keys[0] != sort_keys[1]:
        yield Difference(f"{path} (sort keys)", sort_keys[0], sort_keys[1])
        return
    groups: dict[Any, tuple[list[bytes], list[bytes]]] = {}
    for sort_key, one, other in zip(sort_keys[0], left.kvs, right.kvs):
        group = groups.setdefault(sort_key, ([], []))
        group[0].append(one.SerializeToString(deterministic=True))
        group[1].append(other.SerializeToString(deterministic=True))
    cut = sort_keys[0][-1] if left.more else None
    for sort_key, (ones, others) in groups.items():
        if Counter(ones) == Counter(others):
            continue
        if not (left.more and sort_key == cut):
            yield Difference(f"{path} (group {sort_key!r})", sorted(ones), sorted(others))
            continue
        # The limit cut this group: any of its members is right, but each only once.
        if len(set(others)) != len(others):
            yield Difference(f"{path} (group {sort_key!r}, repeated)", sorted(ones), sorted(others))
        if contents is not None:
            allowed = {_visible(request, kv) for kv in stored.values() if getattr(kv, field) == sort_key}
            if not set(others) <= allowed:
                yield Difference(f"{path} (group {sort_key!r}, cut)", sorted(allowed), sorted(others))


def _visible(request: Message, kv: Message) -> bytes:
    if request.keys_only:
        blank = pb.KeyValue()
        blank.CopyFrom(kv)
        blank.value = b""
        kv = blank
    return kv.SerializeToString(deterministic=True)


def _short(value: Any) -> str:
    text = repr(value) if not hasattr(value, "DESCRIPTOR") else " ".join(str(value).split())
    return text if len(text) <= 300 else f"{text[:300]}... ({len(text)} characters)"
