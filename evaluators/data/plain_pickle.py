"""Reads pickles of plain data without unpickling them.

A pickle is a program. Here its instructions are read one by one, and the few that build dictionaries, lists, numbers,
strings and numpy arrays are followed. Any other instruction is refused, so no code of the file can run. Nor can a file
make the reader hang or grow: sizes and the number of instructions are bounded, and nothing nested is ever hashed or
printed.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_INSTRUCTIONS = 1_000_000
"""Instructions of one pickle. CIFAR's have a few for each label and file name, and none holds more than 150,000."""

_DTYPE = re.compile(r"[|<>]?[uif][1248]")
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")


@dataclass(frozen=True)
class _Global:
    """A name that a pickle mentions; it stands for itself and is never looked up."""

    module: str
    name: str


class _Array:
    """An array that is being made, as numpy's `_reconstruct` leaves it."""

    value: NDArray[Any] | None = None


class _Mark:
    pass


_MARK = _Mark()
_TEXT = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_OLD_TEXT = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # Python 2's, bytes or text
_INTEGERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def plain_pickle(content: bytes, what: str) -> dict[str, Any]:
    """Reads the dictionary in a pickle of plain data: text keys; numbers, text, bytes, lists and arrays as values.

    Raises ValueError, in one line that begins with `what`, for anything else.
    """
    try:
        value = _followed(content)
    # What an interpreter stumbles over in a malformed program: an empty stack, a wrong operand, a number too large.
    except (ValueError, IndexError, KeyError, TypeError, StopIteration, OverflowError) as error:
        raise ValueError(f"{what}: not plain data, or cut short: {one_line(error)}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{what}: a dictionary is expected, not {type(value).__name__}")
    return {_text(key): _finished(entry) for key, entry in value.items()}


def _text(value: Any) -> str:
    """A text, also where an old pickle holds it as bytes."""
    text: str = value.decode("latin-1") if isinstance(value, bytes) else _of(value, str)
    return text


def _finished(value: Any) -> Any:
    """A value without what only the reader needs: arrays as such, texts as such."""
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, list):
        return [_text(entry) if isinstance(entry, bytes) else entry for entry in value]
    return value


def _followed(content: bytes) -> Any:
    """The value that a pickle's instructions build, step by step on a stack as an unpickler does."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    room = len(content)  # for bytes made of text: only text that is used again and again gives more than the file has

    def above_mark() -> list[Any]:
        place = next(place for place in reversed(range(len(stack))) if stack[place] is _MARK)
        taken = stack[place + 1 :]
        del stack[place:]
        return taken

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if count >= MOST_INSTRUCTIONS:
            raise ValueError(f"more than {MOST_INSTRUCTIONS} instructions")
        name = opcode.name
        if name in ("PROTO", "FRAME"):
            pass
        elif name == "STOP":
            return stack.pop()
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name in ("DICT", "LIST", "TUPLE"):
            taken = above_mark()
            stack.append(_pairs(taken) if name == "DICT" else taken if name == "LIST" else tuple(taken))
        elif name in _TUPLES:
            place = len(stack) - _TUPLES[name]
            taken = stack[place:]
            del stack[place:]
            stack.append(tuple(taken))
        elif name in ("APPEND", "APPENDS"):
            taken = above_mark() if name == "APPENDS" else [stack.pop()]
            _of(stack[-1], list).extend(taken)
        elif name in ("SETITEM", "SETITEMS"):
            taken = above_mark() if name == "SETITEMS" else [stack.pop() for _ in range(2)][::-1]
            _of(stack[-1], dict).update(_pairs(taken))
        elif name in ("BINPUT", "LONG_BINPUT", "PUT", "MEMOIZE"):
            memo[len(memo) if name == "MEMOIZE" else int(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name in _TEXT or name in _BYTES or name in _INTEGERS:
            stack.append(argument)
        elif name in _OLD_TEXT:
            stack.append(argument.encode("latin-1"))
        elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
        elif name == "GLOBAL":
            stack.append(_Global(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_Global(_text(module), _text(attribute)))
        elif name == "REDUCE":
            arguments = _of(stack.pop(), tuple)
            made = _called(stack.pop(), arguments)
            room -= len(made) if isinstance(made, bytes) else 0
            if room < 0:
                raise ValueError("more bytes than the file has")
            stack.append(made)
        elif name == "BUILD":
            state = stack.pop()
            _build(stack[-1], state)
        else:
            raise ValueError(f"the instruction {name}")
    raise ValueError("no end")


def _of(value: Any, kind: type) -> Any:
    """The value, if it is of this kind; else a ValueError."""
    if not isinstance(value, kind):
        raise ValueError(f"{kind.__name__} expected, found {type(value).__name__}")
    return value


def _pairs(flat: list[Any]) -> dict[str | bytes, Any]:
    keys = flat[::2]
    if not all(isinstance(key, str | bytes) for key in keys):
        raise ValueError("a key that is no text")
    return dict(zip(keys, flat[1::2], strict=True))


def _called(function: Any, arguments: tuple[Any, ...]) -> Any:
    """The result that numpy's own few functions would give for these arguments; nothing is called by its name."""
    wanted = _of(function, _Global)
    if wanted.module in _NUMPY and wanted.name == "_reconstruct":
        return _Array()
    if (wanted.module, wanted.name) == ("numpy", "dtype"):
        code = _text(arguments[0])
        if not _DTYPE.fullmatch(code):
            raise ValueError(f"an array of type {code!r}")
        return np.dtype(code)
    if (wanted.module, wanted.name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them in old protocols
        return _of(arguments[0], str).encode("latin-1")
    if wanted.module in ("numpy.core.numeric", "numpy._core.numeric") and wanted.name == "_frombuffer":
        data, dtype, shape, layout = arguments
        return _shaped(data, dtype, shape, layout)
    raise ValueError(f"it calls {wanted.module}.{wanted.name}")


def _build(target: Any, state: Any) -> None:
    if isinstance(target, np.dtype):  # (version, byte order, ...), which the code of one-byte numbers does not need
        if target.itemsize > 1 and _text(state[1]) not in ("<", "="):
            raise ValueError("an array of big-endian numbers")
        return
    _, shape, dtype, columns_first, data = state
    _of(target, _Array).value = _shaped(data, dtype, shape, "F" if columns_first else "C")


def _shaped(data: bytes, dtype: Any, shape: tuple[int, ...], layout: Any) -> NDArray[Any]:
    if layout not in ("C", "F"):
        raise ValueError("an array whose entries stand in neither C's nor Fortran's order")
    flat: NDArray[Any] = np.frombuffer(data, _of(dtype, np.dtype))
    return flat.reshape(shape, order="F" if layout == "F" else "C")


def one_line(error: Exception) -> str:
    """The text of an error in one line of at most 120 characters."""
    return f"{' '.join(str(error).split()):.120}"
