"""Damage files on purpose, by a seeded generator: bytes, numbers, members of archives, words."""

import copy
import io
import json
import math
import random
import re
import struct
import zipfile
from pathlib import Path

import h5py
import numpy as np

NUMBERS = (0, 1, -1, 2, 3, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, -(2**31), 2**32 - 1)
JSON_VALUES = (
    0, 1, -1, 2**31, 10**9, 10**12, 2**63, -(2**63), 10**400, 0.5, -0.0, 1e308, math.nan, math.inf,
    None, True, False, "", "x", "x" * 20_000, "\x00", "\x1b[2J\n", "../../x", "\ud800", [], {},
    [[]], [None], [0] * 5000, {"class_name": "Dense"}, {"class_name": "Lambda", "config": {}},
    {"class_name": "__tensor__", "config": {"value": [1], "dtype": "float32"}}, "float64", "int8",
    "softmax", "Flatten", "GlorotUniform", "batch_shape",
)  # fmt: skip
DTYPES = ("<f8", "<c16", "|O", "|V8", "<U1000000", "<M8[ns]", "|b1", ">i2", "nonsense", "(2,3)f4")
SHAPES = (
    (10**18,), (2**62, 2**62), (-1,), (0,), (), (1,) * 64, (40, 0), (2**31, 8, 8, 1), (3, 10**9, 9),
    ("8",), (1.5,),
)  # fmt: skip
YAML_WORDS = (
    ":", "- ", "{", "}", "[", "]", "&a", "*a", "*nothing", "!!python/object/apply:os.system [id]",
    "!!binary /w==", "|", ">", "\t", "#", "%", "? ", "---\n", "...\n", '"', "'", "\x00", "\x07",
    "\ufeff", "\u2028", "~", "yes", ".nan", ".inf", "-.inf", "1e999", "9" * 400, "0x" + "f" * 400,
    "0o777", "2020-01-01", "<<: *a", "\\", "null", "-1", "0", "auto", "😀" * 100, "x" * 50_000,
)  # fmt: skip


def damage(data: bytes, kind: str, generator: random.Random) -> bytes:
    """`data` with one to three changes that its kind of file can have.

    Args:
        data: A good file.
        kind: Its suffix, such as `".tflite"`.
        generator: Where the choices come from.
    """
    own = {
        ".tflite": (change_flatbuffer,),
        ".keras": (change_member, change_member),
        ".npz": (change_member, change_member),
        ".h5": (change_hdf5,),
        ".yaml": (change_text, change_text, change_text),
    }[kind]
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        data = generator.choice((change_bytes, *own))(data, generator)
    return data


# ---------------------------------------------------------------------------- bytes


def change_bytes(data: bytes, generator: random.Random) -> bytes:
    """A bit, a run of bytes, a number, a block, or the length of any file."""
    if len(data) < 16:
        return data + generator.randbytes(16)
    change = generator.choice(
        (_flip, _flip, _overwrite, _number, _number, _number, _fill, _cut, _repeat, _remove)
    )
    return change(data, generator)


def _flip(data: bytes, generator: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(generator.choice((1, 1, 4, 16))):
        changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    return bytes(changed)


def _overwrite(data: bytes, generator: random.Random) -> bytes:
    start, size = _block(data, generator)
    return data[:start] + generator.randbytes(size) + data[start + size :]


def _fill(data: bytes, generator: random.Random) -> bytes:
    start, size = _block(data, generator)
    return data[:start] + generator.choice((b"\0", b"\xff")) * size + data[start + size :]


def _number(data: bytes, generator: random.Random) -> bytes:
    """A whole number at a place where one may stand, at an extreme or beside what it was."""
    changed, form = bytearray(data), generator.choice("BHIQ")
    size = struct.calcsize(form)
    start = generator.randrange(len(data) - size + 1) // size * size
    before = struct.unpack_from("<" + form, data, start)[0]
    after = generator.choice((*NUMBERS, before + 1, before - 1, before * 2, 2**63 - 1, 2**63))
    struct.pack_into("<" + form, changed, start, after % 2 ** (8 * size))
    return bytes(changed)


def _cut(data: bytes, generator: random.Random) -> bytes:
    return data[: generator.randrange(len(data))]


def _repeat(data: bytes, generator: random.Random) -> bytes:
    start, size = _block(data, generator)
    place = generator.randrange(len(data))
    return data[:place] + data[start : start + size] + data[place:]


def _remove(data: bytes, generator: random.Random) -> bytes:
    start, size = _block(data, generator)
    return data[:start] + data[start + size :]


def _block(data: bytes, generator: random.Random) -> tuple[int, int]:
    size = min(len(data) // 2, generator.choice((1, 4, 16, 64, 512)))
    return generator.randrange(len(data) - size), size


# ---------------------------------------------------------------------------- .tflite


def change_flatbuffer(data: bytes, generator: random.Random) -> bytes:
    """One field of a `.tflite` file, through LiteRT's own classes: its offsets stay good."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    try:
        model = schema.ModelT.InitFromPackedBuf(data)
        for _ in range(20):  # some values do not fit their field
            edited = copy.deepcopy(model)
            _change_field(edited, generator)
            builder = flatbuffers.Builder(len(data))
            try:
                builder.Finish(edited.Pack(builder), b"TFL3")
            except Exception:  # the writer refuses it in many ways
                continue
            return bytes(builder.Output())
    except Exception:  # it is damaged already
        pass
    return change_bytes(data, generator)


def _change_field(model: object, generator: random.Random) -> None:
    """Go down to a random number, vector or list of objects, and change it."""
    place = model
    while True:
        fields = [name for name, value in vars(place).items() if value is not None]
        name = generator.choice(fields)
        value = getattr(place, name)
        if isinstance(value, list) and value and hasattr(value[0], "__dict__"):
            if generator.random() < 0.1:
                _shuffle(value, generator)
                return
            place = generator.choice(value)
        elif hasattr(value, "__dict__"):
            place = value
        else:
            setattr(place, name, _other_value(value, generator))
            return


def _shuffle(values: list, generator: random.Random) -> None:
    act = generator.choice(("remove", "repeat", "swap"))
    if act == "remove":
        values.pop(generator.randrange(len(values)))
    elif act == "repeat":
        values.append(copy.deepcopy(generator.choice(values)))
    else:
        generator.shuffle(values)


def _other_value(value: object, generator: random.Random) -> object:
    number = generator.choice((*NUMBERS, 4, 5, 7, 9, 16, 60, 100, 10_000, 10**7))
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return generator.choice((number, value + 1, value - 1))
    if isinstance(value, float):
        return generator.choice((0.0, -1.0, 1e-45, 1e38, math.nan, math.inf, float(number)))
    if isinstance(value, np.ndarray) and value.size:
        return _other_vector(value.copy(), number, generator)
    if isinstance(value, bytes):
        return generator.choice((b"", b"\xff\xfe", value + value, value[:1]))
    return value


def _other_vector(vector: np.ndarray, number: int, generator: random.Random) -> np.ndarray:
    act = generator.choice(("set", "set", "set", "longer", "shorter", "fill"))
    if act == "longer":
        return np.concatenate([vector, vector[-1:]])
    if act == "shorter":
        return vector[:-1]
    with np.errstate(all="ignore"):
        value = np.array(number).astype(vector.dtype)
    if act == "fill":
        vector[:] = value
    else:
        vector[generator.randrange(vector.size)] = value
    return vector


# ---------------------------------------------------------------------------- zip archives


def change_member(data: bytes, generator: random.Random) -> bytes:
    """One member of a zip archive, written again with the right sizes and checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        number = generator.randrange(len(members))
    except Exception:  # it is damaged already
        return change_bytes(data, generator)
    name, content = members[number]
    if generator.random() < 0.08:
        name, content = _other_member(name, content, generator)
    elif name.endswith(".json"):
        content = change_json(content, generator)
    elif name.endswith(".npy"):
        content = change_npy(content, generator)
    elif name.endswith(".h5"):
        content = generator.choice((change_hdf5, change_bytes))(content, generator)
    members[number] = (name, content)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            info = zipfile.ZipInfo(name)  # of 1980: the same bytes at any time
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return target.getvalue()


def _other_member(name: str, content: bytes, generator: random.Random) -> tuple[str, bytes]:
    """Another name, or nothing, or very much that packs well."""
    return generator.choice(
        (
            ("../" + name, content),
            ("/" + name, content),
            (name + "x", content),
            (name, b""),
            (name, content + bytes(30_000_000)),
            (name, b"[" * 1_000_000),
        )
    )


def change_json(content: bytes, generator: random.Random) -> bytes:
    """One value of a JSON document: another value, another part of it, gone, or nested deeply."""
    try:
        root = [json.loads(content)]
    except (ValueError, RecursionError):
        return change_bytes(content, generator)
    places = [
        (parent, key)
        for parent in _containers(root)
        for key in (parent if isinstance(parent, dict) else range(len(parent)))
    ]
    parent, key = generator.choice(places)
    act = generator.choice(("value", "value", "value", "part", "remove", "rename", "nest"))
    if act == "part":
        other, name = generator.choice(places)
        parent[key] = copy.deepcopy(other[name])
    elif act == "remove" and parent is not root:
        del parent[key]
    elif act == "rename" and isinstance(parent, dict):
        parent[generator.choice(("name", "config", "class_name", "", "module", "zz"))] = parent[key]
    elif act == "nest":
        depth = generator.choice((3, 100, 5000))
        text = json.dumps(root[0]).encode()
        return text.replace(b"null", b"[" * depth + b"]" * depth, 1)
    else:
        parent[key] = generator.choice(JSON_VALUES)
    return json.dumps(root[0]).encode("utf-8", "surrogatepass")


def _containers(root: list) -> list:
    found, waiting = [], [root]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            found.append(value)
            waiting += value.values() if isinstance(value, dict) else value
    return [value for value in found if value]


def change_npy(content: bytes, generator: random.Random) -> bytes:
    """The header of an array: shape, type, order, version, length, or syntax."""
    head = content[:10]
    if len(head) < 10 or head[:6] != b"\x93NUMPY":
        return change_bytes(content, generator)
    size = struct.unpack_from("<H", head, 8)[0]
    text, values = content[10 : 10 + size].decode("latin-1"), content[10 + size :]
    act = generator.choice(("shape", "shape", "dtype", "dtype", "syntax", "version", "bytes"))
    if act == "bytes":
        return change_bytes(content, generator)
    if act == "shape":
        text = re.sub(r"'shape': \([^)]*\)", f"'shape': {generator.choice(SHAPES)!r}", text)
    elif act == "dtype":
        text = re.sub(r"'descr': '[^']*'", f"'descr': {generator.choice(DTYPES)!r}", text)
    elif act == "syntax":
        words = ("{" * 300, "(" * 3000, "__import__('os')", "{}", "1" * 5000, "'shape': None, ")
        text = generator.choice(words) + text[generator.randrange(2) :]
    raw = text.encode("latin-1")
    version = generator.choice((b"\x02\0", b"\x03\0", b"\xff\xff")) if act == "version" else None
    length = struct.pack("<H", len(raw) % 65_536)
    return head[:6] + (version or head[6:8]) + length + raw + values


# ---------------------------------------------------------------------------- .h5


def change_hdf5(data: bytes, generator: random.Random) -> bytes:
    """An attribute, a link or a data set of an HDF5 file, through h5py."""
    target = io.BytesIO(data)
    try:
        with h5py.File(target, "r+") as file:
            _change_content(file, generator)
    except Exception:  # it is damaged already, or takes no such change
        return change_bytes(data, generator)
    return target.getvalue()


def _change_content(file: h5py.File, generator: random.Random) -> None:
    nodes: list[str] = []
    file.visit(nodes.append)
    sets = [name for name in nodes if isinstance(file[name], h5py.Dataset)]
    texts = [key for key in file.attrs if key.endswith("_config")]
    acts = ["delete", "link", "attribute", *(["config"] * 4 if texts else [])]
    act = generator.choice([*acts, *(["set"] * 3 if sets else [])])
    if act == "config":
        key = generator.choice(texts)
        text = file.attrs[key]
        raw = text if isinstance(text, bytes) else text.encode()
        file.attrs[key] = change_json(raw, generator).decode("utf-8", "replace")
    elif act == "set":
        name = generator.choice(sets)
        del file[name]
        _other_set(file, name, generator)
    elif act == "link" and nodes:
        group = file[generator.choice(nodes)].parent
        group["loop"] = generator.choice((file["/"], h5py.SoftLink("loop")))
    elif act == "attribute":
        node = file[generator.choice(nodes)] if nodes else file
        key = generator.choice([*node.attrs] or ["weight_names"])
        node.attrs[key] = generator.choice((b"\xff" * 10, 0, [b"a", b"b"], "keras", "3.x", [1.5]))
    else:
        del file[generator.choice(nodes or [*file.attrs])]


def _other_set(file: h5py.File, name: str, generator: random.Random) -> None:
    """A data set of another shape or type in its place; huge ones store nothing."""
    act = generator.choice(("huge", "huge", "text", "empty", "group", "object", "scalar"))
    if act == "huge":
        shape = generator.choice(((10**12,), (10**6, 10**6), (2**31, 4)))
        file.create_dataset(name, shape, "f4", chunks=True)
    elif act == "text":
        file[name] = np.array([b"a", b"bc"], dtype="S2")
    elif act == "empty":
        file[name] = h5py.Empty("f4")
    elif act == "group":
        file.create_group(name)
    elif act == "object":
        file.create_dataset(name, (3,), h5py.vlen_dtype(np.int32))
    else:
        file[name] = generator.choice((math.nan, 1, 1e308))


# ---------------------------------------------------------------------------- .yaml


def change_text(data: bytes, generator: random.Random) -> bytes:
    """A word, a value, an indentation, a line, or a bomb of anchors."""
    try:
        lines = data.decode().splitlines(keepends=True) or [""]
    except UnicodeDecodeError:
        return change_bytes(data, generator)
    number = generator.randrange(len(lines))
    line = lines[number]
    act = generator.choice(("word", "word", "value", "value", "indent", "line", "drop", "bomb"))
    if act == "word":
        place = generator.randrange(len(line) + 1)
        line = line[:place] + generator.choice(YAML_WORDS) + line[place:]
    elif act == "value":
        line = f"{line.partition(':')[0]}: {generator.choice(YAML_WORDS)}\n"
    elif act == "indent":
        line = generator.choice((" ", "   ", "\t")) + line
    elif act == "line":
        line += generator.choice(lines)
    elif act == "drop":
        line = ""
    else:
        line += bomb(generator.choice((3, 9, 30)))
    lines[number] = line
    return "".join(lines).encode("utf-8", "surrogatepass")


def bomb(levels: int) -> str:
    """YAML that stands for ten to the power of `levels` values."""
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, levels)]
    return "".join(rows)


def write_damaged(path: Path, good: Path, seed: str) -> Path:
    """The file `path`: what `damage` makes of `good` by `seed`."""
    path.write_bytes(damage(good.read_bytes(), good.suffix, random.Random(seed)))
    return path
