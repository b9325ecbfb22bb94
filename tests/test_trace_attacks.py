"""Files that are no traces, or lie: each gives one clear error and runs nothing."""

import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from trace_lies import FIELDS, MASKS, trace

import regard
from regard.draw.look import Look
from regard.draw.numbers import numbers
from regard.draw.overview import Overview

pytestmark = pytest.mark.once

HEAVY = 2**60


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "x"
    trace().save(path)
    return path.read_bytes()


def read(content: bytes, folder: Path) -> regard.Trace:
    """Opens a file and reads all that is in it."""
    path = folder / "x.trace"
    path.write_bytes(content)
    opened = regard.Trace.load(path)
    for layer in opened:
        if layer.kept is not None:
            layer.weights[..., :9, :9].sum()
            layer.weights.received(last=3)
    for entry in range(2):
        opened.tokens(entry)
        opened.words(entry)
        opened.text(entry)
        opened.at(0, entry)
    for ask in ASKED:
        with suppress(regard.RegardError):  # what can be read may still not be what is asked for
            ask(opened)
    return opened


# What is asked of a file that was read.
ASKED: list[Callable[[regard.Trace], Any]] = [
    lambda trace: trace.to_json(),
    lambda trace: trace.at(3).without_sink().gives(mean="all"),
    lambda trace: trace.at("b", 1).without_sink().gets(mean="all"),
    lambda trace: trace.rollout(3),
    lambda trace: numbers(Look.of(trace, model="").gaze(1)),
    lambda trace: Overview.of(Look.of(trace, model="", entry=1)),
]


def refused(content: bytes, folder: Path, message: str = r"x\.trace: ") -> None:
    with pytest.raises(regard.FileError, match=message) as caught:
        read(content, folder)
    assert str(folder / "x.trace") in str(caught.value)


def parts(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """The header, the description within it, and the numbers."""
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    return header, json.loads(header["__metadata__"]["trace"]), content[8 + size :]


def packed(header: dict[str, Any], description: Any, data: bytes) -> bytes:
    if description is not None:
        text = description if isinstance(description, str) else json.dumps(description)
        header["__metadata__"]["trace"] = text
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def test_the_good_file_is_read(good: bytes, tmp_path: Path) -> None:
    opened = read(good, tmp_path)
    assert len(opened) == 3
    for ask in ASKED:
        ask(opened)
    assert read(packed(*parts(good)), tmp_path).tokens(1)[:2] == ["t80", "t81"]


def test_truncated_anywhere(good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    start = len(good) - len(data)
    ends = {start + end for x in header.values() for end in x.get("data_offsets", ())}
    boundaries = {0, 1, 7, 8, 9, start // 2, start - 1, len(good) - 1}
    for end in sorted(boundaries | {e + d for e in ends for d in (-1, 0, 1)} - {len(good)}):
        if 0 <= end < len(good):
            refused(good[:end], tmp_path, "is no whole safetensors file")
    refused(good + b"x", tmp_path, "is no whole safetensors file")


class Attack:
    """A pickle that would leave a mark."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pickled",)


def test_a_pickle_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    refused(pickle.dumps(Attack()), tmp_path, "is no whole safetensors file")
    torch.save({"x": torch.ones(3)}, tmp_path / "y")
    refused((tmp_path / "y").read_bytes(), tmp_path, "is no whole safetensors file")
    assert not (tmp_path / "pickled").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 64,
        b"hello, this is a text and no trace",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 99_999_999) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 2) + b"{\xff",
        struct.pack("<Q", 200_000) + b"[" * 200_000,
        struct.pack("<Q", 60_000) + b'{"a":' * 12_000,
    ],
    ids=["empty", "zeros", "text", "2**63", "long", "list", "no UTF-8", "lists", "objects"],
)
def test_no_safetensors(content: bytes, tmp_path: Path) -> None:
    refused(content, tmp_path, "is no whole safetensors file")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(regard.FileError, match="missing: there is no such file"):
        regard.Trace.load(tmp_path / "missing")
    with pytest.raises(regard.FileError, match="is no file"):
        regard.Trace.load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(regard.FileError, match="is no file"):
            regard.Trace.load(path)
    with pytest.raises(regard.FileError):
        regard.Trace.load("x\0y")


def test_a_foreign_safetensors_file(good: bytes, tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "y")
    refused((tmp_path / "y").read_bytes(), tmp_path, "holds no trace that `Trace.save` wrote")
    save_file({"weight": torch.ones(3)}, tmp_path / "y", metadata={"format": "pt"})
    refused((tmp_path / "y").read_bytes(), tmp_path, "holds no trace that `Trace.save` wrote")
    header, _, data = parts(good)
    header["__metadata__"]["format"] = 5
    refused(packed(header, None, data), tmp_path)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("999", "is of version 999 of the format, and this regard reads versions up to 2"),
        ("1" * 5000, "is of version 1111111"),
        ("0", "got the version '0'"),
        ("-1", "got the version '-1'"),
        ("1.5", "got the version '1.5'"),
        ("", "got the version ''"),
        ("\u0663", "got the version"),
        ("NaN", "got the version 'NaN'"),
    ],
)
def test_versions(version: str, message: str, good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    header["__metadata__"]["version"] = version
    refused(packed(header, None, data), tmp_path, message)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[" * 100_000,
        '{"a":' * 100_000,
        "[]",
        "null",
        "{}",
        '{"start": NaN}',
        '{"start": 1e999}',
        '{"start": ' + "9" * 100_000 + "}",
        "\u0000",
        '{"layers": 3}',
        '{"layers": [3]}',
        '{"layers": [{"weights": 3}]}',
    ],
)
@pytest.mark.parametrize("version", ["1", "2"])
def test_descriptions_that_are_none(text: str, version: str, good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    header["__metadata__"]["version"] = version
    refused(packed(header, text, data), tmp_path)


def offsets(header: dict[str, Any], name: str, value: Any) -> None:
    header[name]["data_offsets"] = value


HEADERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlap": lambda h: offsets(h, "layers.0.key", h["layers.0.query"]["data_offsets"]),
    "reversed": lambda h: offsets(h, "layers.0.key", h["layers.0.key"]["data_offsets"][::-1]),
    "beyond": lambda h: offsets(h, "layers.0.key", [0, 2**63]),
    "negative": lambda h: offsets(h, "layers.0.key", [-8, 8]),
    "NaN": lambda h: offsets(h, "layers.0.key", [float("nan"), 8]),
    "dtype": lambda h: h["layers.0.key"].update(dtype="F64"),
    "unknown dtype": lambda h: h["layers.0.key"].update(dtype="PICKLE"),
    "other numbers": lambda h: h["layers.0.key"].update(dtype="I32"),
    "other shape": lambda h: h["layers.0.key"].update(shape=[4, 80, 4]),
    "twisted shape": lambda h: h["layers.0.key"].update(shape=[2, 80, 2, 4]),
    "many dimensions": lambda h: h["layers.0.key"].update(shape=[1] * 90 + [2, 2, 80, 4]),
    "great shape": lambda h: h["layers.0.key"].update(shape=[2**40, 2**40]),
    "negative shape": lambda h: h["layers.0.key"].update(shape=[-2, -2, 80, 4]),
    "no key": lambda h: h.update({"../../etc/passwd": h.pop("layers.0.key")}),
}


@pytest.mark.parametrize("attack", HEADERS)
def test_headers_that_lie(attack: str, good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    HEADERS[attack](header)
    refused(packed(header, None, data), tmp_path)


def test_booleans_that_are_none(good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    name = next(name for name, x in header.items() if x.get("dtype") == "BOOL")
    start = header[name]["data_offsets"][0]
    changed = data[:start] + b"\x80" + data[start + 1 :]
    refused(packed(header, None, changed), tmp_path, "neither true nor false")


def test_numbers_that_no_mask_has(good: bytes, tmp_path: Path) -> None:
    header, _, data = parts(good)
    tensors = {
        name: x["data_offsets"][0]
        for name, x in header.items()
        if name.startswith("mask") and x["dtype"] == "I64" and x["shape"] == [2]
    }
    assert len(tensors) == 2
    for start in tensors.values():
        for bad in (-(2**62), 2**62):
            changed = data[:start] + struct.pack("<q", bad) + data[start + 8 :]
            refused(packed(header, None, changed), tmp_path, "needs integers of at most 2")
    peak = header["layers.0.peak.2"]["data_offsets"][0]
    changed = data[:peak] + struct.pack("<q", 80) + data[peak + 8 :]
    refused(packed(header, None, changed), tmp_path, "peak: names keys beyond the 80")


def test_numbers_that_do_not_lie_at_their_size(good: bytes, tmp_path: Path) -> None:
    """A shifted file is odd, but all of it is there."""
    header, description, data = parts(good)
    text = json.dumps(header | {}).encode()
    for shift in range(8):
        shifted = text + b" " * (shift + -len(text) % 8)
        opened = read(struct.pack("<Q", len(shifted)) + shifted + data, tmp_path)
        assert torch.equal(opened[0].weights[..., :, :], trace()[0].weights[..., :, :])
    assert description["layers"]


@pytest.mark.parametrize(("mask", "message"), MASKS)
def test_masks_that_are_none(mask: Any, message: str, good: bytes, tmp_path: Path) -> None:
    header, description, data = parts(good)
    description["layers"][1]["weights"]["mask"] = mask
    content = packed(header, description, data)
    refused(content, tmp_path, message)
    path = tmp_path / "x.trace"
    assert regard.Trace.load(path)[0].weights.shape == (2, 2, 80, 80)  # the others can be read
    with pytest.raises(regard.FileError, match=r"x\.trace: layers\.1: "):
        regard.Trace.load(path)[1]


@pytest.mark.parametrize(
    ("where", "value", "message"), FIELDS, ids=[f"{n} {f[0][-1]}" for n, f in enumerate(FIELDS)]
)
def test_fields_that_cannot_be(
    where: tuple[Any, ...], value: Any, message: str, good: bytes, tmp_path: Path
) -> None:
    header, description, data = parts(good)
    put(description, where, value)
    refused(packed(header, description, data), tmp_path, message)


def put(tree: Any, where: tuple[Any, ...], value: Any) -> None:
    for key in where[:-1]:
        tree = tree[key]
    tree[where[-1]] = value


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a value of a description stands."""
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield (*at, key)
            yield from places(value, (*at, key))


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**53, HEAVY, -HEAVY, 10**400, 2**64, -1]),
    st.floats(allow_nan=True),
    st.text(max_size=4),
    st.sampled_from(["mask", "mask.2", "layers.0.lse", "layers.1.query", "bias", "token_ids"]),
    st.lists(st.integers(-2, 3), max_size=3),
    st.just({}),
    st.just({"kind": "band"}),
)


# What a file may lead to: it is refused; or it is read, and holds no words, or fewer texts.
TOLD = (regard.FileError, regard.TextError, regard.OptionError)


@given(data=st.data())
def test_any_change_is_read_or_refused(
    data: Any, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No change of a description gives another error, or takes more memory than there is."""
    header, description, numbers = parts(good)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(
            st.sampled_from([p for p in places(description) if p[:2] != ("input", "pieces")])
        )
        put(description, where, deepcopy(data.draw(JUNK)))
    with suppress(*TOLD):
        read(packed(header, description, numbers), tmp_path_factory.mktemp("changed"))


def test_a_number_that_no_float_holds(good: bytes, tmp_path: Path) -> None:
    header, description, data = parts(good)
    text = json.dumps(description).replace('"options": {', '"options": {"x": -1e999, ')
    refused(packed(header, text, data), tmp_path, "holds -1e999, which is no finite number")


@given(data=st.data())
def test_any_byte_may_be_wrong(
    data: Any, good: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(good)
    header = len(good) - len(parts(good)[2])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    with suppress(*TOLD):
        read(bytes(content), tmp_path_factory.mktemp("changed"))
