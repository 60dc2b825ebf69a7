"""JSON as Go's decoder reads it: one value from the front of a text, and what is wrong with it in Go's words.

For what the fast parser refuses: it knows neither where a value ends nor Go's messages. Source: seen live on etcd
3.5.1 (tests/gateway/test_bad_json.py).
"""

import json
import re

from etcdfast._ext.jsonwire import JsonError, NumberText

DEPTH_MAX = 500
SCAN_CHARS_MAX = 16384  # the scan takes a microsecond for each and the frontend waits: longer texts are read by C
SPACE = " \t\r\n"
VALUE = "looking for beginning of value"


class NoValue(Exception):
    """Nothing but blanks: the end of the input."""


class Cut(JsonError):
    """The text ends within a value. More may follow."""

    def __init__(self):
        super().__init__("unexpected EOF")


def first_value(text, start=0):
    """(value, where it ends). Numbers that are no short integers stay texts. Errors: NoValue, Cut, JsonError; of a long
    text all are JsonError, not in Go's words."""
    if len(text) - start > SCAN_CHARS_MAX:
        return _value_of_long(text, start)
    end = _Scan(text, start).value_end()
    begin = start
    while text[begin] in SPACE:
        begin += 1
    try:
        value = json.loads(text[begin:end], parse_float=NumberText, parse_int=_int, parse_constant=NumberText)
    except (ValueError, RecursionError) as err:
        raise JsonError(str(err)) from None
    return value, end


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


def _value_of_long(text, start):
    begin = _PAST_SPACE.match(text, start).end()
    if begin == len(text):
        raise NoValue
    try:
        return _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError) as err:
        raise JsonError(f"invalid JSON: {err}"[:200]) from None


def _int(text):
    return int(text) if len(text) < 20 else NumberText(text)


_PAST_SPACE = re.compile(f"[{SPACE}]*")
_DECODER = json.JSONDecoder(parse_float=NumberText, parse_int=_int, parse_constant=_no_constant)


def slow_number(text, go_type):
    """The number in a string, as Go reads it. Errors: JsonError."""
    try:
        value, end = first_value(text)
        if text[end:].strip(SPACE):
            rest = end + len(text[end:]) - len(text[end:].lstrip(SPACE))
            raise JsonError(f"invalid character {quoted(text[rest])} after top-level value")
    except (NoValue, Cut):
        raise JsonError("unexpected end of JSON input") from None
    if value is None:
        return 0
    if type(value) is int:
        return value
    kinds = {bool: "bool", str: "string", list: "array", dict: "object"}
    kind = kinds.get(type(value), "number")
    shown = f"number {text.strip(SPACE)}" if kind == "number" else kind
    raise JsonError(f"json: cannot unmarshal {shown} into Go value of type {go_type}")


def quoted(char):
    """A byte in single quotes, as Go shows it."""
    char = char.encode("utf-8", "surrogateescape")[:1].decode("latin-1")
    if char == "'":
        return r"'\''"
    if char == '"':
        return "'\"'"
    escapes = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v", "\\": "\\\\"}
    if char in escapes:
        return f"'{escapes[char]}'"
    if char < " " or char == "\x7f":
        return rf"'\x{ord(char):02x}'"
    if "\x80" <= char < "\xa1" or char == "\xad":
        return rf"'\u{ord(char):04x}'"
    return f"'{char}'"


class _Scan:
    def __init__(self, text, at):
        self.text = text
        self.at = at

    def _space(self):
        text, at = self.text, self.at
        while at < len(text) and text[at] in SPACE:
            at += 1
        self.at = at

    def _char(self):
        if self.at >= len(self.text):
            raise Cut
        char = self.text[self.at]
        self.at += 1
        return char

    def _wrong(self, char, where):
        return JsonError(f"invalid character {quoted(char)} {where}")

    def value_end(self):
        self._space()
        if self.at >= len(self.text):
            raise NoValue
        open_ones = []
        while True:
            self._space()
            char = self._char()
            if char == "{" or char == "[":
                if len(open_ones) >= DEPTH_MAX:
                    raise JsonError("exceeded max depth")
                self._space()
                if self.at >= len(self.text):
                    raise Cut
                closing = "}" if char == "{" else "]"
                if self.text[self.at] != closing:
                    open_ones.append(closing)
                    if char == "{":
                        self._key()
                    continue
                self.at += 1
            elif char == '"':
                self._string()
            elif char in "-0123456789":
                self._number(char)
            elif char in "tfn":
                self._literal({"t": "true", "f": "false", "n": "null"}[char])
            else:
                raise self._wrong(char, VALUE)
            # Behind a value.
            while True:
                if not open_ones:
                    return self.at
                self._space()
                char = self._char()
                if char == open_ones[-1]:
                    open_ones.pop()
                    continue
                if char != ",":
                    in_object = open_ones[-1] == "}"
                    raise self._wrong(char, "after object key:value pair" if in_object else "after array element")
                if open_ones[-1] == "}":
                    self._key()
                break

    def _key(self):
        self._space()
        char = self._char()
        if char != '"':
            raise self._wrong(char, "looking for beginning of object key string")
        self._string()
        self._space()
        char = self._char()
        if char != ":":
            raise self._wrong(char, "after object key")

    def _string(self):
        while True:
            char = self._char()
            if char == '"':
                return
            if char == "\\":
                char = self._char()
                if char == "u":
                    for _ in range(4):
                        char = self._char()
                        if char not in "0123456789abcdefABCDEF":
                            raise self._wrong(char, "in \\u hexadecimal character escape")
                elif char not in 'bfnrt\\/"':
                    raise self._wrong(char, "in string escape code")
            elif char < " ":
                raise self._wrong(char, "in string literal")

    def _digits(self):
        while self.at < len(self.text) and self.text[self.at] in "0123456789":
            self.at += 1

    def _number(self, char):
        if char == "-":
            char = self._char()
            if char not in "0123456789":
                raise self._wrong(char, "in numeric literal")
        if char != "0":
            self._digits()
        if self.text[self.at : self.at + 1] == ".":
            self.at += 1
            char = self._char()
            if char not in "0123456789":
                raise self._wrong(char, "after decimal point in numeric literal")
            self._digits()
        if self.text[self.at : self.at + 1] in ("e", "E"):
            self.at += 1
            char = self._char()
            if char in "+-":
                char = self._char()
            if char not in "0123456789":
                raise self._wrong(char, "in exponent of numeric literal")
            self._digits()

    def _literal(self, word):
        for expected in word[1:]:
            char = self._char()
            if char != expected:
                raise self._wrong(char, f"in literal {word} (expecting {quoted(expected)})")
