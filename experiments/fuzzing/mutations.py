"""Mutations of bytes, of JSON values and of ONNX models: each from a random generator and nothing else."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

ODD_NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 65536, 2**31, -(2**31), 2**62, 2**64, 10**30, 0.5, -0.0, 1e-308, 1e308,
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    *ODD_NUMBERS, None, True, False, "", "x", "\u0000", "../..", "a" * 300, "1e9", "NaN", [], {}, [[]], [None], {"": 0},
)  # fmt: skip
ODD_WORDS = (
    b"", b"\0", b"\n", b"\r\n", b",", b";", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"../", b"%s", b"{}", b"-1", b"9" * 40,
)  # fmt: skip


def mutated_bytes(content: bytes, rng: random.Random, most: int = 4) -> bytes:
    """Some bytes changed, repeated, taken out or moved."""
    data = bytearray(content)
    for _ in range(rng.randint(1, most)):
        if not data:
            data = bytearray(rng.choice(ODD_WORDS))
            continue
        place, length = rng.randrange(len(data)), min(len(data), 2 ** rng.randint(0, 8))
        way = rng.randrange(7)
        if way == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif way == 1:
            data[place] = rng.choice((0, 1, 127, 128, 255))
        elif way == 2:
            del data[place : place + length]
        elif way == 3:
            data[place:place] = data[place : place + length]
        elif way == 4:
            data[place:place] = rng.choice(ODD_WORDS)
        elif way == 5:
            other = rng.randrange(len(data))
            data[place : place + length] = data[other : other + length]
        else:
            packed = struct.pack(rng.choice("<>") + rng.choice("iqI"), rng.choice((0, 1, -1, 2**31 - 1)) & 0x7FFFFFFF)
            data[place : place + len(packed)] = packed
    return bytes(data)


def mutated_json(value: Any, rng: random.Random, most: int = 3) -> Any:
    """A copy with some of its values replaced, taken out, repeated, renamed, or put elsewhere."""
    result = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        places = list(_places(result))
        if not places:
            return rng.choice(ODD_VALUES)
        holder, key = rng.choice(places)
        way = rng.randrange(7)
        if way <= 2:
            holder[key] = _odd(holder[key], rng)
        elif way == 3:
            del holder[key]
        elif way == 4:
            other, name = rng.choice(places)
            there = name in other if isinstance(other, dict) else name < len(other)
            holder[key] = copy.deepcopy(other[name]) if there else 0
        elif way == 5 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", "", "__class__", str(key).upper()))] = holder.pop(key)
        elif isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), copy.deepcopy(holder[key]))
        else:
            nested: Any = holder[key]
            for _ in range(rng.choice((1, 3, 30))):
                nested = [nested]
            holder[key] = nested
    return result


def _odd(value: Any, rng: random.Random) -> Any:
    """Another value, often of the same kind."""
    if isinstance(value, bool) or value is None or rng.random() < 0.4:
        return rng.choice(ODD_VALUES)
    if isinstance(value, int | float):
        return rng.choice((*ODD_NUMBERS, value + 1, -value, value * 1000))
    if isinstance(value, str):
        return rng.choice((value[:-1], value * 2, value.upper(), value + "\n", value.replace("_", "-")))
    return rng.choice(ODD_VALUES)


def _places(value: Any) -> Any:
    """All (holder, key) below a value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def mutated_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON Lines of which some are changed, cut off, repeated or exchanged."""
    lines = content.splitlines(keepends=True)
    for _ in range(rng.randint(1, 3)):
        if not lines:
            break
        place = rng.randrange(len(lines))
        way = rng.randrange(5)
        if way <= 1:
            try:
                lines[place] = json.dumps(mutated_json(json.loads(lines[place]), rng)).encode() + b"\n"
            except ValueError:
                lines[place] = mutated_bytes(lines[place], rng)
        elif way == 2:
            lines.insert(place, lines[place])
        elif way == 3:
            del lines[place]
        else:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
    return b"".join(lines)


def mutated_model(content: bytes, rng: random.Random) -> bytes:
    """An ONNX model with some fields changed; one in four has bytes changed instead."""
    import onnx

    if rng.random() < 0.2:
        return mutated_bytes(content, rng)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception:  # what protobuf raises has no narrower base class in all its implementations
        return mutated_bytes(content, rng)
    for _ in range(rng.randint(1, 3)):
        _change_model(model, rng)
    return bytes(model.SerializeToString())


def _change_model(model: Any, rng: random.Random) -> None:
    graph = model.graph
    if not graph.node:
        return
    node = rng.choice(graph.node)
    way = rng.randrange(12)
    if way == 0:
        kinds = ("Conv", "Reshape", "If", "Loop", "Scan", "Gather", "Split", "STFT", "Resize", "Zzz", "")
        node.op_type = rng.choice(kinds)
    elif way == 1 and node.input:
        names = [*rng.choice(graph.node).output, *node.output, "", "nothing"]
        node.input[rng.randrange(len(node.input))] = rng.choice(names)
    elif way == 2 and node.attribute:
        _change_attribute(rng.choice(node.attribute), rng)
    elif way == 3:
        graph.node.remove(node)
    elif way == 4:
        graph.node.insert(rng.randrange(len(graph.node)), node)
    elif way == 5 and graph.initializer:
        tensor = rng.choice(graph.initializer)
        if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, 1, -1, 3, 2**31, 2**62))
    elif way == 6 and graph.initializer:
        rng.choice(graph.initializer).data_type = rng.choice((0, 1, 3, 6, 7, 8, 10, 16, 99))
    elif way == 7 and graph.input:
        dims = rng.choice(graph.input).type.tensor_type.shape.dim
        if dims:
            dim = rng.choice(dims)
            dim.dim_value = rng.choice((0, 1, -1, 3, 17, 2**31, 2**62))
            if rng.random() < 0.4:
                dim.dim_param = rng.choice(("n", "", "?", "x" * 500))
    elif way == 8 and model.opset_import:
        rng.choice(model.opset_import).version = rng.choice((0, 1, 7, 11, 13, 30, -1, 2**31 - 1))
    elif way == 9 and graph.initializer:
        rng.choice(graph.initializer).raw_data = bytes(rng.randrange(256) for _ in range(rng.choice((0, 1, 8, 64))))
    elif way == 10 and node.output:
        node.output[0] = rng.choice((*rng.choice(graph.node).output, "", "input"))
    elif graph.output:
        graph.output[0].name = rng.choice(("nothing", "", *rng.choice(graph.node).output))


def _change_attribute(attribute: Any, rng: random.Random) -> None:
    numbers = (0, 1, -1, 2, 5, 2**31, 2**62, -(2**62))
    if attribute.ints:
        attribute.ints[rng.randrange(len(attribute.ints))] = rng.choice(numbers)
        if rng.random() < 0.3:
            attribute.ints.append(1)
    elif rng.random() < 0.3:
        attribute.name = rng.choice(("axis", "pads", "group", "then_branch", "value", ""))
    else:
        attribute.i = rng.choice(numbers)
        attribute.type = rng.choice((0, 1, 2, 3, 4, 5, 7, 11))
