"""JSON of the gateway to and from protobuf wire bytes, by a plan per message type; no message objects between.

JSON as grpc-gateway's: names as in the .proto file (camelCase is taken too), 64-bit numbers as strings (numbers are
taken too), bytes in base64 (URL alphabet and missing padding are taken too), enums by name, zero fields left out.
"""

from collections.abc import Mapping, Sequence

class JsonError(ValueError):
    """What is wrong with a request, in the words of Go's encoding/json."""

class JsonPlan:
    """The fields of one message type. Plans may refer to each other and to themselves, so fields come later."""

    def __init__(self, name: str) -> None: ...
    def add(
        self,
        number: int,
        name: str,
        kind: str,
        repeated: bool = False,
        message: JsonPlan | None = None,
        enum: Mapping[int, str] | None = None,
        enum_name: str = "",
        aliases: Sequence[str] = (),
    ) -> None:
        """kind: bytes, string, bool, int64, uint64, int32, uint32, enum or message."""
    def to_json(self, wire: bytes, start: int = 0, before: bytes = b"", after: bytes = b"") -> bytes:
        """The message in wire[start:] between `before` and `after`. Errors: ValueError when it is malformed."""
    def to_frame(self, value: object) -> bytes:
        """A parsed JSON object as a gRPC message behind its prefix. Errors: JsonError."""
