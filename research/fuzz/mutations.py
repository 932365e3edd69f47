"""Ways to damage a file: of its bytes, and of its structure (JSON, YAML, zip, .npy and safetensors headers, pickles).

Every function takes a ``random.Random`` and the content, and returns the changed content. Where a mutation does not fit
the content, its bytes are changed instead, so that every case differs from its seed in something.
"""

from __future__ import annotations

import io
import json
import pickletools
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import yaml

Mutation = Callable[[random.Random, bytes], bytes]
ODD_NUMBERS = (
    0,
    -1,
    1,
    2,
    255,
    2**31 - 1,
    -(2**31),
    2**53 + 1,
    2**63,
    10**30,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
)
ODD_TEXTS = (
    "", " ", "a", "\0", "é", "e\u0301", "\u2028", "\u0085", "\ud800", "../../x", "nan", "-1", "1e400", "x" * 70_000,
    "true", "@random:0.5", "<b>&", "\N{GRINNING FACE}", "/dev/null", "%s{0}$(x)",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], {"": None}, [1, 2], {"a": 1}, *ODD_NUMBERS, *ODD_TEXTS)
ODD_BYTES = (
    b"\0",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\n",
    b"\r",
    b'"',
    b",",
    b"'",
    b"\x1a",
    b"\xe2\x80\xa8",
    b"\xc2\x85",
    b"\x0b",
)
NPY_HEADERS = (
    "{'descr': '|u1', 'fortran_order': False, 'shape': (300000000000, 3), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4294967296), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (0,), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (), }",
    "{'descr': '|u1', 'fortran_order': False, 'shape': (1.5,), }",
    "{'descr': '|u1', 'fortran_order': 7, 'shape': (12, 3, 4, 4), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<U1000000000', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<M8[ns]', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '|V7', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<c16', 'fortran_order': False, 'shape': (12,), }",
    "{'descr': [('a', '<i4'), ('b', '|u1', (3,))], 'fortran_order': False, 'shape': (2,), }",
    "{'descr': '<i4', 'fortran_order': True, 'shape': (12, 4, 4), }",
    "{'descr': 5, 'fortran_order': False, 'shape': (12,), }",
    "{'descr': '<f2', 'fortran_order': False, 'shape': (12, 2, 4), 'more': 1}",
    "__import__('os')",
    "(" * 2000,
    "[" + "0," * 5000,
)
"""Headers of .npy files that claim too much, too little or something else."""
YAML_TRICKS = (
    "a: !!python/object/apply:os.system ['touch {mark}']\n",
    "x0: &x0 [z,z,z,z,z,z,z,z,z]\n" + "".join(f"x{i}: &x{i} [{','.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "a: " + "9" * 5000 + "\n",
    "a: &a [*a]\n",
    "? {a: 1}\n: 2\n",
    "a: 2001-01-01\n1: 2\nnull: 3\n",
    "<<: [1]\n",
    "a: !!binary aGk=\nb: !!set {x, y}\n",
    "[" * 3000 + "\n",
    "- a\n- b\n",
    "a: 1\na: 2\n",
    "a: .nan\nb: -.inf\nc: 0o7\nd: 1:30:00\n",
)
"""Pieces of YAML that run code, expand, nest or read as other types."""
EXPLOITS = (
    b"cposix\nsystem\n(S'touch {mark}'\ntR0",
    b'c__builtin__\nexec\n(S\'open("{mark}", "w")\'\ntR0',
    b'cbuiltins\neval\n(S\'open("{mark}", "w")\'\ntR0',
    b"csubprocess\nPopen\n((lS'touch'\naS'{mark}'\natR0",
    b"(S'touch {mark}'\nios\nsystem\n0",
    b"cio\nopen\n(S'{mark}'\nS'w'\ntR0",
    b'cnumpy.testing._private.utils\nrunstring\n(S\'open("{mark}", "w")\'\n(dtR0',
    b"ctorch.hub\nload\n(S'/'\nS'x'\ntR0",
)
"""Pieces of a pickle that would create the file ``{mark}`` if they were run, in every way that the machine knows."""


def flip(rng: random.Random, content: bytes) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(content or b"\0")
    for bit in rng.sample(range(8 * len(changed)), rng.randint(1, 8)):
        changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def overwrite(rng: random.Random, content: bytes) -> bytes:
    """Overwrite two to eight bytes with an odd number."""
    width = rng.choice((2, 4, 8))
    at = rng.randrange(max(1, len(content) - width))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), rng.getrandbits(8 * width)))
    return content[:at] + value.to_bytes(width, rng.choice(("little", "big"))) + content[at + width :]


def truncate(rng: random.Random, content: bytes) -> bytes:
    """Cut the end off."""
    return content[: rng.randrange(len(content))] if content else b"\0"


def insert(rng: random.Random, content: bytes) -> bytes:
    """Insert odd or random bytes."""
    at = rng.randrange(len(content) + 1)
    return (
        content[:at]
        + (rng.choice(ODD_BYTES) if rng.random() < 0.6 else rng.randbytes(rng.randint(1, 16)))
        + content[at:]
    )


def repeat(rng: random.Random, content: bytes) -> bytes:
    """Repeat or delete a stretch."""
    if not content:
        return b"\0"
    first = rng.randrange(len(content))
    last = min(len(content), first + rng.randint(1, 64))
    return content[:first] + content[first:last] * rng.choice((0, 2, 3, 50)) + content[last:]


BYTES: Sequence[Mutation] = (flip, overwrite, truncate, insert, repeat)


def change_bytes(rng: random.Random, content: bytes) -> bytes:
    """Damage the bytes, once or several times."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        content = rng.choice(BYTES)(rng, content)
    return content


def _nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in nested mappings and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] + [found for key, item in inner for found in _nodes(item, (*path, key))]


def change_value(rng: random.Random, value: Any) -> Any:
    """Replace, delete, rename, repeat or exchange one value inside nested mappings and lists."""
    paths = _nodes(value)
    path = rng.choice(paths)
    if not path:
        return rng.choice(ODD_VALUES)
    *parents, last = path
    group = value
    for key in parents:
        group = group[key]
    kind = rng.randrange(10)
    if kind == 0:
        del group[last]
    elif kind == 1 and isinstance(group, dict):
        group[str(last) + rng.choice(("", "x", " ", "\u0301"))] = group.pop(last)
    elif kind == 2 and isinstance(group, dict):
        group[rng.choice(ODD_TEXTS)] = group[last]
    elif kind == 2:
        group.insert(rng.randrange(len(group) + 1), group[last])
    elif kind == 3:
        other: Any = value
        for key in rng.choice(paths):
            other = other[key]
        group[last] = json.loads(json.dumps(other, default=str)) if other is not value else None
    elif kind == 4 and isinstance(group[last], (int, float)):
        group[last] = group[last] * rng.choice((-1, 2, 0.5, 10**12))
    elif kind == 4 and isinstance(group[last], str) and group[last]:
        group[last] = change_bytes(rng, group[last].encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    else:
        group[last] = rng.choice(ODD_VALUES)
    return value


def _change_text(rng: random.Random, value: Any, write: Callable[[Any], str]) -> str:
    """Change nested values until what is written of them differs: a value may be exchanged for its equal."""
    given = text = write(value)
    while text == given:
        for _ in range(rng.choice((1, 1, 2, 4))):
            value = change_value(rng, value)
        text = write(value)
    return text


def change_json(rng: random.Random, content: bytes) -> bytes:
    """Change the values of a JSON text, or its nesting."""
    if rng.random() < 0.04:
        return rng.choice(
            (b"[" * 200_000, b'{"a":' * 100_000, b"9" * 6000, b"1e999999", b'{"a":1}' * 2, b"\xff\xfe{\0}\0")
        )
    try:
        value = json.loads(content)
        text = _change_text(rng, value, json.dumps)
    except (ValueError, RecursionError):  # no JSON, or nested too deeply by an earlier change
        return change_bytes(rng, content)
    if rng.random() < 0.03:
        text = text.replace("0", "9" * 5000, 1)
    return text.encode()


def change_json_lines(rng: random.Random, content: bytes) -> bytes:
    """Change one line of JSON."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = change_json(rng, lines[at])
    return b"\n".join(lines)


def change_yaml(rng: random.Random, content: bytes, mark: str = "mark") -> bytes:
    """Change the values of a YAML text, or add a piece that runs code, expands or nests."""
    if rng.random() < 0.3:
        trick = rng.choice(YAML_TRICKS).replace("{mark}", mark).encode()
        return rng.choice((trick, content + trick, trick + content))
    try:
        value = yaml.safe_load(content)
        text = _change_text(rng, value, lambda now: yaml.safe_dump(now, allow_unicode=True, sort_keys=False))
        return text.encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError, RecursionError):
        return change_bytes(rng, content)


def change_npy(rng: random.Random, content: bytes, mark: str = "mark") -> bytes:
    """Change the header of a .npy file, or put a pickle in the place of its numbers."""
    if not content.startswith(b"\x93NUMPY") or rng.random() < 0.3:
        return change_bytes(rng, content)
    length = struct.unpack("<H", content[8:10])[0]
    body = content[10 + length :]
    header = rng.choice(NPY_HEADERS).encode() + b"\n"
    if rng.random() < 0.2:
        header = content[10 : 10 + length]
        return content[:8] + struct.pack("<H", rng.choice((0, 1, 65535, length + 3, length - 3))) + header + body
    if b"|O" in header:
        body = b"\x80\x02" + exploit(rng, mark) + b"N."
    return content[:6] + b"\x01\0" + struct.pack("<H", len(header)) + header + body


def exploit(rng: random.Random, mark: str) -> bytes:
    """A piece of a pickle that creates the file ``mark`` if it is run, and leaves the stack as it was."""
    return rng.choice(EXPLOITS).replace(b"{mark}", mark.encode())


def change_pickle(rng: random.Random, content: bytes, mark: str = "mark") -> bytes:
    """Insert code between two opcodes of a pickle, or delete, repeat or exchange opcodes."""
    try:
        starts = [at for _, _, at in pickletools.genops(content) if at is not None]
    except Exception:
        return change_bytes(rng, content)
    at = rng.randrange(len(starts) - 1) if len(starts) > 1 else 0
    first, last = starts[at], starts[at + 1] if at + 1 < len(starts) else len(content)
    kind = rng.randrange(5)
    if kind <= 1:
        return content[:first] + exploit(rng, mark) + content[first:]
    if kind == 2:
        return content[:first] + content[last:]
    if kind == 3:
        return content[:last] + content[first:last] * rng.choice((1, 2, 2000)) + content[last:]
    return (
        content[:first]
        + rng.choice((b"N", b"]", b"}", b")", b"R", b"b", b"Q", b"\x81", b"h\xff", b"I7\n"))
        + content[last:]
    )


def change_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Change the header of a safetensors file, or the length that it claims."""
    length = int.from_bytes(content[:8], "little")
    header, body = content[8 : 8 + length], content[8 + length :]
    if rng.random() < 0.2:
        return rng.choice((0, 1, length - 1, length + 8, 2**31, 2**63)).to_bytes(8, "little") + header + body
    changed = change_json(rng, header)
    return len(changed).to_bytes(8, "little") + changed + body


def change_zip(rng: random.Random, content: bytes, inner: Callable[[random.Random, str, bytes], bytes]) -> bytes:
    """Change a member of a zip file with ``inner``, or its directory: names, sizes, repeated and missing members."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return change_bytes(rng, content)
    kind, at = rng.randrange(10), rng.randrange(len(members))
    name, data = members[at]
    if kind < 5:
        members[at] = (name, inner(rng, name, data))
    elif kind == 5:
        del members[at]
    elif kind == 6:
        members[at] = (rng.choice(("../" + name, "/" + name, name + ".npy", name.upper(), "x", "y\0.npy", "")), data)
    elif kind == 7:
        members.append(rng.choice(members))
    elif kind == 8:
        members[at] = (name, data[:128] + b"\0" * rng.choice((10, 80_000_000)))
    out = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if kind == 8 or rng.random() < 0.3 else zipfile.ZIP_STORED
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", packing, compresslevel=1) as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for member, inside in members:
            archive.writestr(zipfile.ZipInfo(member or "_"), inside, packing)
    written = out.getvalue()
    if kind < 9:
        return written
    entry = written.rfind(b"PK\x01\x02")
    place = entry + rng.choice(
        (8, 10, 16, 20, 24, 28, 42)
    )  # flags, method, checksum, sizes, length of the name, offset
    return written[:place] + rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", rng.randbytes(4))) + written[place + 4 :]
