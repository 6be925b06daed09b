"""Imports go one way: kernels <- checkpoint <- models <- engine <- llm <- jobs, with leaves that know only errors."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEAVES = (
    "errors", "config", "foreign_settings", "sampling_fields", "structured_params", "sampling_params", "outputs",
    "machine",
)  # fmt: skip
# Each package may import what stands before it. Every module directly in nanovllm/ that is no leaf is of the last.
ORDER = ("kernels", "checkpoint", "models", "engine")
LLM = len(ORDER)
CIMPORT = re.compile(r"^\s*from\s+([\w.]+)\s+cimport\s|^\s*cimport\s+([\w.]+)", re.MULTILINE)
IMPORT = re.compile(r"^\s*from\s+([\w.]+)\s+import\s+(.*)|^\s*import\s+([\w.]+)", re.MULTILINE)


def python_imports(text, package):
    """Modules that a Python source imports anywhere, inside functions too; "from a import b" counts as a.b."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def cython_imports(text):
    for match in CIMPORT.finditer(text):
        yield match[1] or match[2]
    for match in IMPORT.finditer(text):
        if match[3]:
            yield match[3]
        else:
            yield from (f"{match[1]}.{name.strip()}" for name in match[2].split(",") if name.strip())


def sources(folder):
    return sorted(p for p in (ROOT / folder).rglob("*") if p.suffix in (".py", ".pyx", ".pxd"))


def imports_of(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return list(python_imports(text, ".".join(path.relative_to(ROOT).parts[:-1])))
    return list(cython_imports(text))


def place(module):
    """("leaf" or layer number, name) of a dotted name in nanovllm, None outside."""
    parts = module.split(".")
    if parts[0] != "nanovllm":
        return None
    head = parts[1] if len(parts) > 1 else "nanovllm"
    if head in ORDER:
        return ORDER.index(head)
    return "leaf" if head in LEAVES else LLM


def refused(importer, imported):
    """Why a module at `importer` may not import one at `imported`, None if it may."""
    if imported is None or imported == importer:
        return None
    if importer == "leaf":
        return None if imported == "leaf" else "a leaf imports a layer"
    return "an edge points up" if imported != "leaf" and imported > importer else None


ALL = [path for path in sources("nanovllm") if path != ROOT / "nanovllm/__init__.py"]


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_edge_points_up(path):
    own = place(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module in imports_of(path):
        assert refused(own, place(module)) is None, f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [p for p in ALL if "kernels" in p.relative_to(ROOT).parts], ids=lambda path: path.name)
def test_kernels_know_only_errors_besides_themselves(path):
    for module in imports_of(path):
        if module.startswith("nanovllm"):
            assert module.split(".")[1] in ("kernels", "errors"), f"{path.name} imports {module}"


@pytest.mark.parametrize("name", LEAVES)
def test_leaves_know_only_each_other(name):
    for module in imports_of(ROOT / "nanovllm" / f"{name}.py"):
        assert not module.startswith("nanovllm") or module.split(".")[1] in LEAVES, f"{name} imports {module}"


@pytest.mark.parametrize("path", sources("nanovllm"), ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_in_the_engine_knows_the_runner(path):
    assert not [module for module in imports_of(path) if module.split(".")[0] == "jobs"]


@pytest.mark.parametrize("path", sources("jobs"), ids=lambda path: str(path.relative_to(ROOT)))
def test_jobs_use_only_public_names(path):
    import nanovllm

    text = path.read_text(encoding="utf-8")
    used = [module for module in imports_of(path) if module.startswith("nanovllm") and module != "nanovllm"]
    used += [f"nanovllm.{name}" for name in re.findall(r"\bnanovllm\.([A-Za-z_]\w*)", _code(text))]
    for module in used:
        assert module.count(".") == 1, f"{path.name} reaches into {module}"
        assert module.split(".")[1] in nanovllm.__all__, f"{path.name} uses {module}"


def _code(text):
    """The source without its strings and comments."""
    return ast.unparse(_WithoutStrings().visit(ast.parse(text)))


class _WithoutStrings(ast.NodeTransformer):
    def visit_Constant(self, node):
        return ast.copy_location(ast.Constant(""), node) if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node):
        return ast.copy_location(ast.Constant(""), node)


@pytest.mark.parametrize(
    "importer, imported, allowed",
    [
        ("nanovllm.engine.scheduler", "nanovllm.llm.LLM", False),
        ("nanovllm.engine.scheduler", "nanovllm.tokenizer.Tokenizer", False),
        ("nanovllm.engine.scheduler", "nanovllm.kernels.ops", True),
        ("nanovllm.models.rope", "nanovllm.engine.batch", False),
        ("nanovllm.kernels.ops", "nanovllm.models.spec", False),
        ("nanovllm.config", "nanovllm.errors.ConfigError", True),
        ("nanovllm.config", "nanovllm.kernels.isa", False),
        ("nanovllm.models.rope", "nanovllm.LLM", False),
        ("nanovllm.engine.scheduler", "numpy", True),
    ],
)
def test_the_rule_itself(importer, imported, allowed):
    assert (refused(place(importer), place(imported)) is None) is allowed


def test_the_parsers_see_every_kind_of_import():
    python = "import a.b\nfrom c import d, e\ndef f():\n    from g.h import i\n    importlib.import_module('j.k')\n"
    assert sorted(python_imports(python, "p.q")) == ["a.b", "c.d", "c.e", "g.h.i", "j.k"]
    assert list(python_imports("from . import x\nfrom ..y import z", "p.q")) == ["p.q.x", "p.y.z"]
    cython = (
        "from a.b cimport (\n    c,\n)\ncimport d\nfrom e import f, g\nimport h\ncdef extern from 'x.h':\n    int i\n"
    )
    assert sorted(cython_imports(cython)) == ["a.b", "d", "e.f", "e.g", "h"]


@pytest.mark.parametrize("heavy", ["numpy", "tokenizers", "jinja2", "scipy"])
def test_importing_the_package_loads_nothing_heavy(heavy):
    code = f"import sys, nanovllm; nanovllm.__version__; sys.exit({heavy!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_public_name_can_be_had():
    import nanovllm

    assert len(set(nanovllm.__all__)) == len(nanovllm.__all__)
    for name in nanovllm.__all__:
        assert getattr(nanovllm, name) is not None
    assert dir(nanovllm) == sorted(nanovllm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'llm_engine'"):
        nanovllm.llm_engine  # noqa: B018
