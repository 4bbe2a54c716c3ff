"""Read the data of a pickle without ever running what it names.

A pickle is a program for a stack machine. This one only moves data: a global becomes a name, a call becomes a record
of that name and its arguments, and bytes stay slices of the file. Python's own unpickler is not used because even a
restricted one calls what it was allowed, copies every payload, and can be made to allocate without bound (a single
LONG_BINPUT grows its memo to 2^32 entries).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

# Generous for circuits (about 60 opcodes a node), and small enough to bound the memory of a hostile file.
MAX_OPCODES = 2_000_000
MAX_TEXT_BYTES = 4096


class Global(NamedTuple):
    """The name of a class or function, never resolved."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Call:
    """What a pickle wanted called: `function(*args)`, then given `state`. Nothing is called."""

    __slots__ = ("args", "function", "state")

    def __init__(self, function: Global, args: tuple[Any, ...]):
        self.function, self.args, self.state = function, args, None


def read_pickle(data: memoryview, origin: str, allowed: Collection[tuple[str, str]]) -> Any:
    """Decode one pickle into plain data, `Global` and `Call` records; byte strings are slices of `data`.

    Args:
      data: the pickle, bytes; it must outlive the result, which points into it.
      origin: what to call the data in messages (the file's name).
      allowed: the (module, name) pairs that may be mentioned.

    Raises:
      ValueError: truncated or malformed data, a global outside `allowed`, opcodes that circuits do not use, or more
        work than a circuit could need.
    """
    machine = _Machine(data, origin, frozenset(allowed))
    try:
        return machine.run()
    except (IndexError, KeyError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{origin}: not a well-formed pickle at byte {machine.position} ({type(error).__name__})"
        ) from error


class _Machine:
    """The stack, the memo and the reading position of one pickle."""

    def __init__(self, data: memoryview, origin: str, allowed: frozenset[tuple[str, str]]):
        self.data, self.origin, self.allowed = data, origin, allowed
        self.position = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MAX_OPCODES):
            code = self.take(1)[0]
            if code == ord("."):
                if self.position != len(self.data):
                    raise ValueError(
                        f"{self.origin}: {len(self.data) - self.position} bytes follow the end of the pickle; refused"
                    )
                return self.stack.pop()
            action = _ACTIONS.get(code)
            if action is None:
                raise ValueError(
                    f"{self.origin}: pickle opcode {bytes([code])!r} at byte {self.position - 1} has no place in a "
                    "circuit; refused"
                )
            action(self)
        raise ValueError(f"{self.origin}: more than {MAX_OPCODES} pickle opcodes; a circuit needs far fewer; refused")

    def take(self, count: int) -> memoryview:
        """The next `count` bytes, as a slice."""
        left = len(self.data) - self.position
        if count > left:
            raise ValueError(
                f"{self.origin}: truncated: {count} bytes are due at byte {self.position}, {left} are there; "
                "copy or download the file again"
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, code: str) -> int:
        """A little-endian integer in `struct` notation."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        """The values since the last mark."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def text(self, count: int) -> None:
        if count > MAX_TEXT_BYTES:
            raise ValueError(f"{self.origin}: a string of {count} bytes in a circuit's pickle; refused")
        self.push(bytes(self.take(count)).decode("utf-8"))

    def name(self, module: Any, name: Any) -> None:
        """Push a global if it is allowed."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError(f"{self.origin}: a global whose name is not text; refused")
        if (module, name) not in self.allowed:
            raise ValueError(
                f"{self.origin}: names {module[:200]}.{name[:200]}, which no circuit needs; refused, and nothing of "
                "it was run"
            )
        self.push(Global(module, name))

    def call(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(args, tuple) or isinstance(args, Global):
            raise ValueError(f"{self.origin}: a call of something that is not a name; refused")
        self.push(Call(function, args))

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, Call) or target.state is not None:
            raise ValueError(f"{self.origin}: state given to something that takes none; refused")
        target.state = state

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError(f"{self.origin}: items appended to something that is not a list; refused")
        target.extend(values)

    def set_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(values) % 2:
            raise ValueError(f"{self.origin}: items set on something that is not a dict; refused")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise ValueError(f"{self.origin}: a dict key that is not text; refused")
            target[key] = value

    def tuple_of(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(values)

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def put(self, slot: int) -> None:
        self.memo[slot] = self.stack[-1]

    def protocol(self) -> None:
        version = self.number("B")
        if version > 5:
            raise ValueError(f"{self.origin}: pickle protocol {version}; at most 5 is known")

    def frame(self) -> None:
        length, left = self.number("Q"), len(self.data) - self.position
        if length > left:
            raise ValueError(
                f"{self.origin}: truncated: a frame of {length} bytes at byte {self.position}, {left} are there; "
                "copy or download the file again"
            )

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.name(module, name)

    def line_global(self) -> None:
        """The form of protocols below 4: two lines of text."""
        lines = []
        for _ in range(2):
            window = bytes(self.data[self.position : self.position + MAX_TEXT_BYTES])
            end = window.find(b"\n")
            if end < 0:
                raise ValueError(f"{self.origin}: truncated or endless name at byte {self.position}; refused")
            lines.append(bytes(self.take(end + 1))[:-1].decode("utf-8"))
        self.name(*lines)

    def long1(self) -> None:
        count = self.number("B")
        if count > 9:
            raise ValueError(f"{self.origin}: an integer of {count} bytes in a circuit's pickle; refused")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def one_of(self) -> list[Any]:
        return [self.stack.pop()]

    def two_of(self) -> list[Any]:
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]


_ACTIONS: dict[int, Callable[[_Machine], None]] = {
    ord(code): action
    for code, action in {
        "\x80": _Machine.protocol,
        "\x95": _Machine.frame,
        "(": _Machine.mark,
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "K": lambda m: m.push(m.number("B")),
        "M": lambda m: m.push(m.number("H")),
        "J": lambda m: m.push(m.number("i")),
        "\x8a": _Machine.long1,
        "G": lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
        "\x8c": lambda m: m.text(m.number("B")),
        "X": lambda m: m.text(m.number("I")),
        "\x8d": lambda m: m.text(m.number("Q")),
        "C": lambda m: m.push(m.take(m.number("B"))),
        "B": lambda m: m.push(m.take(m.number("I"))),
        "\x8e": lambda m: m.push(m.take(m.number("Q"))),
        "\x96": lambda m: m.push(m.take(m.number("Q"))),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        ")": lambda m: m.push(()),
        "t": lambda m: m.push(tuple(m.pop_mark())),
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "a": lambda m: m.append(m.one_of()),
        "e": lambda m: m.append(m.pop_mark()),
        "s": lambda m: m.set_items(m.two_of()),
        "u": lambda m: m.set_items(m.pop_mark()),
        "\x94": lambda m: m.put(len(m.memo)),
        "q": lambda m: m.put(m.number("B")),
        "r": lambda m: m.put(m.number("I")),
        "h": lambda m: m.push(m.memo[m.number("B")]),
        "j": lambda m: m.push(m.memo[m.number("I")]),
        "\x93": _Machine.stack_global,
        "c": _Machine.line_global,
        "R": _Machine.call,
        "\x81": _Machine.call,
        "b": _Machine.build,
    }.items()
}
