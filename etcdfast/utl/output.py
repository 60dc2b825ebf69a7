"""The forms in which etcd's tools print a row of figures: -w simple, table, json, fields."""

import json
import sys

from etcdfast.utl.errors import BAD_FEATURE, UtlError

FORMATS = ("simple", "table", "json", "fields")


def check_format(name):
    """Errors: UtlError, in the tools' words."""
    if name not in (*FORMATS, "protobuf"):
        raise UtlError("unsupported output format", BAD_FEATURE)


def show(name, row, fields, names):
    """Print one row of figures in the form `name`.

    row: [(heading, text)] for simple and table; fields: [(name, value)]; names: {json name: value}.
    """
    check_format(name)
    if name == "protobuf":  # said late, as etcdutl does
        raise UtlError("protobuf not supported as output format", BAD_FEATURE)
    if name == "simple":
        out = ", ".join(text for _, text in row)
    elif name == "json":
        out = json.dumps(names, separators=(",", ":"), ensure_ascii=False)
    elif name == "fields":
        out = "\n".join(f'"{field}" : {value}' for field, value in fields)
    else:
        out = table([heading for heading, _ in row], [[text for _, text in row]])
    print(out)


def table(headings, rows, left=0):
    """The boxes of etcd's tools: headings in capitals and centred, cells to the right; the first `left` to the left."""
    headings = [heading.upper() for heading in headings]
    widths = [max(map(len, column)) for column in zip(headings, *rows)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"

    def centred(text, width):
        left = (width - len(text)) // 2
        return " " * left + text + " " * (width - len(text) - left)

    def joined(cells):
        return "| " + " | ".join(cells) + " |"

    head = joined(centred(text, width) for text, width in zip(headings, widths))
    body = [
        joined(text.ljust(width) if i < left else text.rjust(width) for i, (text, width) in enumerate(zip(row, widths)))
        for row in rows
    ]
    return "\n".join([line, head, line, *body, line])


def human_bytes(size):
    """Bytes as Go's humanize prints them: "20 kB", "1.5 MB"."""
    if size < 10:
        return f"{size} B"
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
    power, scaled = 0, size
    while scaled >= 1000:
        scaled //= 1000
        power += 1
    value = int(size / 1000**power * 10 + 0.5) / 10
    return f"{value:.0f} {units[power]}" if value >= 10 else f"{value:.1f} {units[power]}"


def say(text):
    """News for a person: standard error, so that output stays for programs."""
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A bar on standard error while a file is copied, when that is a terminal; nothing elsewhere."""

    def __init__(self, label, total_bytes=None):
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(desc=label, total=total_bytes, unit="B", unit_scale=True, leave=False, mininterval=0.1)

    def add(self, size):
        if self._bar is not None:
            self._bar.update(size)

    def close(self):
        if self._bar is not None:
            self._bar.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
