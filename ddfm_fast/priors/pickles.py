"""Check the pickle of a checkpoint before it is loaded.

``torch.load(weights_only=True)`` runs no foreign code, but it calls trusted functions with whatever
arguments the file has: a few bytes may allocate a bytearray of 8 GB, double a text's length thirty
times by encoding it, or hash a tuple that is nested a million times. This walks through the
instructions, builds nothing, and accepts only what the dense tensors of a state dict need.
"""

from __future__ import annotations

import io
import pickletools
import re
from typing import Any, BinaryIO, NamedTuple

MOST_BYTES = 1 << 21
"""of a pickle, a header or a directory: 700 tensors take 0.1 MB, and reading a byte may take 64"""
MOST_STEPS = 200_000
"""most instructions; a tensor takes about 42"""
MOST_DEPTH = 500
MOST_ITEMS = 64
"""most items of a tuple, which is a shape or the arguments of a call"""

_VALUES = re.compile(r"torch(\.\w+)* \w+Storage|torch [a-z]\w*")
"""storages, dtypes and the like: named, never called"""
_PLAIN_CALLS = ("collections OrderedDict", "torch Size", "torch device")
_TENSOR_CALLS = (
    *(f"torch._utils _rebuild_tensor{version}" for version in ("", "_v2", "_v3")),
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch._utils _rebuild_meta_tensor_no_storage",
)
_OPCODES = frozenset(
    ("PROTO", "STOP", "MARK", "NONE", "NEWFALSE", "NEWTRUE", "BININT", "BININT1", "BININT2",
     "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING", "LONG1", "EMPTY_TUPLE", "EMPTY_LIST",
     "EMPTY_DICT", "EMPTY_SET", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS",
     "SETITEM", "SETITEMS", "BINGET", "LONG_BINGET", "BINPUT", "LONG_BINPUT", "GLOBAL", "REDUCE",
     "NEWOBJ", "BUILD", "BINPERSID")
)  # fmt: skip
"""what PyTorch reads"""


class ForeignObject(ValueError):
    """A pickle holds something other than dense tensors and plain values."""


class _Item(NamedTuple):
    """What is known of a value on the stack."""

    depth: int = 0
    made: bool = False
    """whether it contains the result of a call"""
    text: str = ""
    name: str = ""
    """of a global"""
    length: int = 0
    """of a tuple"""


_LITERAL = _Item()


def check_pickles(file: BinaryIO, count: int = 1) -> None:
    """Check the next pickles of a file.

    Raises:
        ForeignObject: There is something that no state dict needs; the message names it.
        ValueError: There is no pickle, or it is too large.
    """
    data = io.BytesIO(file.read(MOST_BYTES))
    for _ in range(count):
        walk = _Walk()
        try:
            for n, (opcode, argument, place) in enumerate(pickletools.genops(data)):
                if n > MOST_STEPS:
                    raise ValueError(f"a pickle of more than {MOST_STEPS:,} instructions")
                walk.step(opcode, argument, place)
        except (IndexError, KeyError, TypeError, OverflowError):
            raise ValueError("a pickle whose instructions do not fit each other") from None


class _Walk:
    """The stack and the memo of an unpickler; instead of values they hold what is known of them."""

    def __init__(self) -> None:
        self.stack: list[_Item] = []
        self.marks: list[list[_Item]] = []
        self.memo: dict[int, _Item] = {}
        self.start: int | None = None

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any, place: int | None) -> None:
        """Follow an instruction; ForeignObject or ValueError for what must not be run."""
        name = opcode.name
        self.start = place if self.start is None else self.start
        if name not in _OPCODES or (name == "PROTO" and place != self.start):
            raise ValueError(f"a pickle with the instruction {name}, which PyTorch does not write")
        if name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "GLOBAL":
            self._check_global(argument)
            self.stack.append(_Item(name=argument))
        elif isinstance(argument, str):
            self.stack.append(_Item(text=argument))
        elif not opcode.stack_before:
            self.stack += [_LITERAL] * len(opcode.stack_after)
        else:
            self._build(opcode)

    def _check_global(self, name: str) -> None:
        if name in (*_PLAIN_CALLS, *_TENSOR_CALLS) or _VALUES.fullmatch(name):
            return
        raise ForeignObject(f"{name.replace(' ', '.')}{self._for_key()}")

    def _for_key(self) -> str:
        key = self.stack[-1].text if self.stack else ""
        return f" for {key[:80]}" if key else ""

    def _build(self, opcode: pickletools.OpcodeInfo) -> None:
        taken = self._take(opcode)
        if opcode.name in ("REDUCE", "NEWOBJ"):
            self._check_call(*taken)
        if opcode.name == "BINPERSID" and taken[0].made:
            raise ValueError("a pickle with a storage that a call describes")
        if not opcode.stack_after:
            return
        depth = 1 + max((item.depth for item in taken), default=-1)
        is_tuple = "TUPLE" in opcode.name
        if depth > MOST_DEPTH or (is_tuple and len(taken) > MOST_ITEMS):
            raise ValueError(
                f"a pickle with values nested {depth} times or tuples of {len(taken)}, expected at "
                f"most {MOST_DEPTH} and {MOST_ITEMS}"
            )
        made = opcode.name in ("REDUCE", "NEWOBJ", "BINPERSID") or any(i.made for i in taken)
        self.stack.append(_Item(depth, made, length=len(taken) if is_tuple else 0))

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[_Item]:
        """Pop what an instruction takes; IndexError if the stack is too short."""
        before, taken = opcode.stack_before, []
        count = len(before)
        if pickletools.markobject in before:
            taken, self.stack = self.stack, self.marks.pop()
            count = before.index(pickletools.markobject)
        below = [self.stack.pop() for _ in range(count)]
        return below[::-1] + taken

    def _check_call(self, called: _Item, given: _Item) -> None:
        if called.name in _TENSOR_CALLS:
            return
        if called.name not in _PLAIN_CALLS or given.made:
            raise ForeignObject(f"a call of {called.name.replace(' ', '.') or 'a value'}")
        if called.name == "collections OrderedDict" and given.length:
            raise ForeignObject("a collections.OrderedDict that is filled by a call")
