"""The order of the house: what may import what, read from ARCHITECTURE.md itself.

The tree on that page lists the modules from the ground up. A file imports only from lines above
its own, a folder's files also from each other, but a backend never from another. PyTorch,
transformers and the libraries of the command line stand at the top of few files only.
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regard import _native

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "regard"
PAGE = (ROOT / "ARCHITECTURE.md").read_text()

# A module's imports at its top are paid by whoever imports it; inside a function by who calls it.
OUTSIDE_AT_THE_TOP = {
    "blockwise": {"numpy", "torch"},
    "derivative": {"torch"},
    "native_gradient": {"numpy", "torch"},
    "nn": {"numpy", "torch"},
    "_watch": {"numpy", "torch", "transformers"},
    "hf": {"numpy", "torch", "transformers", "huggingface_hub", "safetensors"},
    "draw": {"numpy", "jinja2", "rich"},
    "translation": {
        "numpy",
        "torch",
        "safetensors",
        "sentencepiece",
        "matplotlib",
        "sacrebleu",
        "lightning_fabric",
        "rich",
    },
    "cli": {"numpy", "typer", "rich"},
}
BACKENDS = {"reference", "native", "blockwise"}


def order_of_the_house(page: str) -> list[str]:
    """The parts in the tree under src/regard/, from the ground up."""
    tree = page.partition("src/regard/")[2]
    lines = tree.partition("\n")[2].splitlines()
    parts = []
    for line in lines:
        if not line.startswith("  "):
            break
        if entry := re.match(r" {2}(\w+)(?:\.py|/)", line):
            parts.append(entry[1])
    return parts


def imports(code: str, package: str) -> list[tuple[str, bool]]:
    """Every module that code in a package imports, and whether at the top.

    An import for type checkers alone costs nothing at run time, but it counts for the order.
    """
    tree = ast.parse(code)
    at_top = {id(node) for node in tree.body}
    found: list[tuple[str, bool]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in at_top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
            found += [(name, id(node) in at_top) for name in names]
    return found


def faults(code: str, part: str, name: str, order: list[str]) -> list[str]:
    """What is wrong with the imports of module `name` of a part of the house."""
    package = "regard" if name == part else f"regard.{part}"
    backend = name.split("_")[0] if part == "_backends" else ""  # blockwise_x is part of blockwise
    found = []
    for target, at_top in imports(code, package):
        outside, _, inside = target.partition(".")
        to, *below = inside.split(".")
        if outside != "regard":
            named = name if name in OUTSIDE_AT_THE_TOP else backend or part
            allowed = OUTSIDE_AT_THE_TOP.get(named, {"numpy"})
            if at_top and outside not in sys.stdlib_module_names and outside not in allowed:
                found.append(f"{part}/{name} imports {outside} at its top")
        elif to == part:
            other = below[0].split("_")[0] if below else ""
            if {backend, other} <= BACKENDS and backend != other:
                found.append(f"{part}/{name} imports its sibling {other}")
        elif to == "_native":
            if backend != "native":
                found.append(f"{part}/{name} imports the kernels")
        elif order.index(to if to in order else "__init__") >= order.index(part):
            found.append(f"{part}/{name} imports {to or 'regard'}, which is not above it")
    return found


def modules() -> list[tuple[str, str, Path]]:
    """(part, name, path) of every module; the name of a part's own file is the part's."""
    return [
        ((where := path.relative_to(SOURCE).with_suffix("").parts)[0], where[-1], path)
        for path in sorted(SOURCE.rglob("*.py"))
    ]


def test_every_part_has_its_line() -> None:
    order = order_of_the_house(PAGE)
    assert sorted({part for part, _, _ in modules()}) == sorted(order)


@pytest.mark.parametrize(
    ("part", "name", "path"), [pytest.param(*m, id=f"{m[0]}-{m[1]}") for m in modules()]
)
def test_imports_follow_the_order(part: str, name: str, path: Path) -> None:
    assert faults(path.read_text(), part, name, order_of_the_house(PAGE)) == []


@pytest.mark.parametrize(
    ("code", "part", "name", "fault"),
    [
        ("from regard._attention import attention", "_masks", "_masks", "not above"),
        ("import regard._masks", "_masks", "_arrays", ""),
        ("def f():\n    from regard.hf import load", "_weights", "_weights", "not above"),
        ("from .native import run", "_backends", "blockwise", "sibling native"),
        ("from regard._backends import native", "_backends", "reference", "sibling native"),
        ("from .blockwise_statistics import x", "_backends", "blockwise", ""),
        ("import torch", "_backends", "native", "torch at its top"),
        ("import torch", "_backends", "blockwise", ""),
        ("import torch", "_backends", "native_call", "torch at its top"),
        ("import torch", "_backends", "native_gradient", ""),
        ("import torch", "_arrays", "_arrays", "torch at its top"),
        ("import torch", "nn", "functional", ""),
        ("from regard.nn import functional", "_watch", "run", ""),
        ("from regard.nn import functional", "_attention", "_attention", "not above"),
        ("def f():\n    import torch", "_arrays", "_arrays", ""),
        ("import regard", "_problem", "_problem", "not above"),
        ("from regard import attention", "_weights", "_weights", "not above"),
        ("from regard import attention", "draw", "page", ""),
        ("from rich import print", "hf", "hf", "rich at its top"),
        ("from regard import _native", "_attention", "_attention", "the kernels"),
        ("from regard import _native", "_backends", "native", ""),
        ("from regard import _masks, _errors", "_problem", "_problem", ""),
    ],
)
def test_the_check_can_fail(code: str, part: str, name: str, fault: str) -> None:
    found = faults(code, part, name, order_of_the_house(PAGE))
    assert (fault in found[0] and len(found) == 1) if fault else found == []


def test_kernels_know_no_python_and_no_torch() -> None:
    for path in sorted((ROOT / "kernels").iterdir()):
        included = re.findall(r'#\s*include\s*[<"]([^>"]+)', path.read_text())
        foreign = [x for x in included if re.search(r"Python\.h|nanobind|pybind|torch|ATen", x)]
        assert path.name.startswith("bindings") or foreign == []


def test_importing_regard_needs_numpy_alone_and_is_quick() -> None:
    """Half the processor time of NumPy's own import, however fast the machine is today."""
    code = (
        "import sys; from time import process_time as now; "
        "start = now(); import numpy; middle = now(); import regard; end = now(); "
        "print(middle - start, end - middle, *{name.split('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", code]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(5)
    ]
    extras = {"torch", "transformers", "rich", "typer", "jinja2", "safetensors", "accelerate"}
    assert extras.isdisjoint(runs[0][2:])
    numpys, own = (min(float(run[n]) for run in runs) for n in (0, 1))
    assert own < numpys / 2


def test_every_path_on_the_page_exists() -> None:
    named = re.findall(r"`((?:src|kernels|tests|benchmarks|docs|models)/[\w./]+)`", PAGE)
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


def signatures(stub: str) -> dict[str, list[str]]:
    """Every function of a stub with its arguments' names; every attribute and property."""
    found: dict[str, list[str]] = {}
    for owner in ast.walk(ast.parse(stub)):
        for node in getattr(owner, "body", []):
            where = getattr(owner, "name", "")
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[f"{where}.{node.target.id}"] = ["self"]
            elif isinstance(node, ast.FunctionDef):
                arguments = [arg.arg for arg in (*node.args.posonlyargs, *node.args.args)]
                found.setdefault(f"{where}.{node.name}", arguments)  # a setter has a getter's name
    return found


def test_the_kernels_stub_has_not_drifted() -> None:
    stubgen = pytest.importorskip("nanobind.stubgen")
    generator = stubgen.StubGen(_native)
    generator.put(_native)
    kept = signatures((SOURCE / "_native.pyi").read_text())
    assert kept["Mask.documents"] == ["self", "queries", "keys"]
    assert kept == signatures(generator.get())
