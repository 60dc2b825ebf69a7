"""Plans of `_ext/jsonwire` from the protobuf descriptors, each made once; and request bodies read by them."""

import orjson

from etcdfast._ext import jsonwire
from etcdfast._ext.jsonwire import JsonError, JsonPlan, NumberText
from etcdfast.api import rpcs
from etcdfast.frontend.http.goscan import NoValue, first_value, slow_number

_KINDS = {3: "int64", 4: "uint64", 5: "int32", 8: "bool", 9: "string", 11: "message", 12: "bytes", 13: "uint32"}
_KINDS |= {14: "enum"}
_plans = {}

jsonwire.slow_number = slow_number


def plan_of(full_name):
    """The plan of a message type of `api/rpcs.py`; loads the protobuf runtime."""
    plan = _plans.get(full_name)
    return plan if plan is not None else _made(rpcs.message_class(full_name).DESCRIPTOR)


def _made(descriptor):
    plan = _plans.get(descriptor.full_name)
    if plan is not None:
        return plan
    plan = _plans[descriptor.full_name] = JsonPlan(descriptor.full_name)
    for field in descriptor.fields:
        enum = field.enum_type
        plan.add(
            field.number,
            field.name,
            _KINDS[field.type],
            repeated=field.is_repeated,
            message=_made(field.message_type) if field.message_type is not None else None,
            enum={value.number: value.name for value in enum.values} if enum is not None else None,
            enum_name=enum.full_name if enum is not None else "",
            aliases=(field.camelcase_name, field.json_name),
        )
    return plan


def to_frame(plan, body):
    """The first JSON value of `body` as a gRPC message behind its prefix; nothing at all is the empty message.

    Errors: JsonError with Go's message.
    """
    try:
        return plan.to_frame(orjson.loads(body))
    except (orjson.JSONDecodeError, JsonError, UnicodeError):
        pass
    try:
        value, _ = first_value(body.decode("utf-8", "replace"))
    except NoValue:
        return b"\0\0\0\0\0"
    return framed(plan, value)


def framed(plan, value):
    if value is None:
        return b"\0\0\0\0\0"
    try:
        return plan.to_frame(value)
    except UnicodeError:
        # A lone surrogate in an escape: Go puts the replacement character there.
        try:
            return plan.to_frame(_mended(value))
        except RecursionError:
            raise JsonError("exceeded max depth") from None


def _mended(value):
    if isinstance(value, NumberText):
        return value
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("?", "\ufffd") if _broken(value) else value
    if isinstance(value, list):
        return [_mended(item) for item in value]
    if isinstance(value, dict):
        return {_mended(name): _mended(item) for name, item in value.items()}
    return value


def _broken(text):
    try:
        text.encode()
    except UnicodeError:
        return True
    return False
