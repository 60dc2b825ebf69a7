"""JSON as Go writes it, so that what members put into the log and the store has the same bytes as etcd's."""

import json

# Go's encoder escapes what HTML or JavaScript could trip over, and has no short forms for these two controls.
_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_SHORT = {"\\b": "\\u0008", "\\f": "\\u000c"}


def dumps(value):
    """Compact text in Go's encoding; keys stay in the order given."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPES)
    if "\\b" in text or "\\f" in text:
        parts = text.split("\\\\")  # an escaped backslash may stand before a b
        for short, long in _SHORT.items():
            parts = [part.replace(short, long) for part in parts]
        text = "\\\\".join(parts)
    return text
