"""Names for addresses of another process: its memory map, and the symbol tables of the ELF files in it."""

import bisect
import re
import struct

FILES_MAX = 128
_SYMTAB, _DYNSYM = 2, 11
_FUNCTION_TYPES = (2, 10)  # STT_FUNC, STT_GNU_IFUNC


class Elf:
    """Functions of one ELF64 file, by address. Errors: OSError, ValueError for another kind of file."""

    def __init__(self, path):
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:5] != b"\x7fELF\x02" or head[5] != 1:
                raise ValueError("no ELF file of 64 bits, little endian")
            (programs_at, sections_at) = struct.unpack_from("<QQ", head, 32)
            (_, program_size, programs, section_size, sections) = struct.unpack_from("<HHHHH", head, 52)
            file.seek(programs_at)
            raw = file.read(program_size * programs)
            self._segments = []  # (file offset, size in the file, address)
            for at in range(0, program_size * programs, program_size):
                kind, _, offset, address, _, size = struct.unpack_from("<IIQQQQ", raw, at)
                if kind == 1:
                    self._segments.append((offset, size, address))
            file.seek(sections_at)
            raw = file.read(section_size * sections)
            tables = [
                struct.unpack_from("<IIQQQQIIQQ", raw, at) for at in range(0, section_size * sections, section_size)
            ]
            chosen = [t for t in tables if t[1] == _SYMTAB] or [t for t in tables if t[1] == _DYNSYM]
            found = {}
            for _, _, _, _, offset, size, link, _, _, _ in chosen[:1]:
                file.seek(offset)
                symbols = file.read(size)
                file.seek(tables[link][4])
                names = file.read(tables[link][5])
                rows = struct.iter_unpack("<IBBHQQ", symbols[: size // 24 * 24])
                for name, info, _, section, address, length in rows:
                    if info & 15 in _FUNCTION_TYPES and section and address:
                        found[address] = (length, names[name : names.index(b"\0", name)])
        self._addresses = sorted(found)
        self._found = found

    def name(self, offset):
        """The function at an offset of the file, or None."""
        for start, size, address in self._segments:
            if start <= offset < start + size:
                at = offset - start + address
                i = bisect.bisect_right(self._addresses, at) - 1
                if i < 0:
                    return None
                begin = self._addresses[i]
                length, name = self._found[begin]
                return name.decode("utf-8", "replace") if at < begin + max(length, 1) else None
        return None


class Symbols:
    """Of the process `pid` as it is mapped now. Errors: OSError."""

    def __init__(self, pid):
        self._pid = pid
        self._maps = []
        self._files = {}
        self._names = {}
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
            for line in file:
                parts = line.split(maxsplit=5)
                if "x" in parts[1] and len(parts) == 6:
                    start, end = (int(word, 16) for word in parts[0].split("-"))
                    self._maps.append((start, end, int(parts[2], 16), parts[5].rstrip("\n")))
        self._maps.sort()
        self._starts = [start for start, *_ in self._maps]

    def name(self, address):
        found = self._names.get(address)
        if found is None:
            found = self._names[address] = self._look_up(address)
        return found

    def _look_up(self, address):
        i = bisect.bisect_right(self._starts, address) - 1
        if i < 0 or address >= self._maps[i][1]:
            return "[unknown]"
        start, _, offset, path = self._maps[i]
        short = path.rpartition("/")[2]
        name = None
        if path.startswith("/"):
            elf = self._elf(path)
            name = elf.name(address - start + offset) if elf else None
        return readable(name) if name else f"[{short.strip('[]')}]"

    def _elf(self, path):
        if path not in self._files:
            if len(self._files) >= FILES_MAX:
                return None
            try:
                self._files[path] = Elf(path)
            except (OSError, ValueError, struct.error):
                self._files[path] = None
        return self._files[path]


_CYTHON = re.compile(r"__pyx_(?:f|pw|pf|fuse_\w+?)_((?:\d+\w+?)+)$")


def readable(name):
    """A Cython function by its dotted name (__pyx_f_8etcdfast_4_ext_9frontloop_turn: etcdfast._ext.frontloop.turn); C++
    names in their source's form; others as they are, without what would break a line of collapsed stacks."""
    if name.startswith("__pyx_f_") or name.startswith("__pyx_pw_") or name.startswith("__pyx_pf_"):
        name = _from_cython(name)
    elif name.startswith("_Z"):
        name = _from_cpp(name)
    return name.replace(";", ":").replace("\n", " ")


def _from_cython(name):
    rest = name.split("_", 4)[4] if name.startswith("__pyx_") else name
    words = []
    while True:
        match = re.match(r"(\d+)", rest)
        if not match:
            break
        length = int(match[1])
        rest = rest[match.end() :]
        if length > len(rest):
            break
        words.append(rest[:length])
        rest = rest[length:].removeprefix("_")
    words.append(rest)
    return ".".join(word for word in words if word) or name


def _from_cpp(name):
    global _demangle
    if _demangle is None:
        _demangle = _load_demangler()
    return _demangle(name)


_demangle = None


def _load_demangler():
    import ctypes

    try:
        function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return lambda name: name
    function.restype = ctypes.c_void_p
    function.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    free.argtypes = [ctypes.c_void_p]

    def demangle(name):
        status = ctypes.c_int()
        found = function(name.encode(), None, None, ctypes.byref(status))
        if not found:
            return name
        text = ctypes.string_at(found).decode("utf-8", "replace")
        free(found)
        return text

    return demangle
