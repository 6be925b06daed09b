"""The project as a whole: packaging, and the files that must agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nanovllm

ROOT = Path(__file__).parents[2]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
KERNELS = ROOT / "nanovllm" / "kernels"

# import name -> distribution name, where they differ
DISTRIBUTIONS = {"lm_eval": "lm-eval", "yaml": "pyyaml"}


def python_imports(path):
    """Modules that a Python file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def cython_imports(path):
    for line in path.read_text("utf-8").splitlines():
        if match := re.match(r"\s*(?:from\s+([\w.]+)\s+c?import\b|c?import\s+([\w.]+))", line):
            yield match[1] or match[2]


SOURCES = [p for folder in ("nanovllm", "jobs") for p in sorted((ROOT / folder).rglob("*.py"))]
CYTHON = sorted([*KERNELS.glob("*.pyx"), *KERNELS.glob("*.pxd")])
IMPORTS = [module for path in SOURCES for module in python_imports(path)]
IMPORTS += [module for path in CYTHON for module in cython_imports(path)]


def declared(section):
    block = re.search(rf"^{section} = \[(.*?)\]$", PYPROJECT, re.MULTILINE | re.DOTALL)[1]
    return {re.match(r"[\w-]+", item)[0].lower() for item in re.findall(r'"([^"]+)"', block)}


def test_third_party_imports_are_declared():
    foreign = {module.split(".")[0] for module in IMPORTS}
    foreign -= {*sys.stdlib_module_names, "nanovllm", "jobs", "cpython", "libc", ""}
    distributions = {DISTRIBUTIONS.get(name, name) for name in foreign}
    # huggingface_hub comes with tokenizers; the others are extras.
    assert distributions - declared("dependencies") == {"gguf", "huggingface_hub", "llguidance", "lm-eval", "sacrebleu"}
    assert declared("gguf") == {"gguf"}
    assert declared("structured") == {"llguidance"}
    assert declared("lm-eval") == {"lm-eval"}
    assert declared("dependencies") - distributions == {"safetensors"}  # the format's own reader checks ours in tests


def test_extras_are_imported_late():
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        extras = {'gguf', 'huggingface_hub', 'llguidance', 'lm_eval', 'pytest', 'hypothesis', 'Cython'}\n"
        "        if name.split('.')[0] in extras:\n"
        "            raise ImportError(name + ' is not a run-time package')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import nanovllm, jobs.cli\n"
        "for name in nanovllm.__all__:\n"
        "    getattr(nanovllm, name)\n"
        "jobs.cli.build_parser()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_loads_no_kernel():
    script = "import sys, jobs.cli; jobs.cli.build_parser(); print([m for m in sys.modules if 'kernels' in m])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_versions_agree():
    version = re.search(r'^version = "(.+)"$', PYPROJECT, re.MULTILINE)[1]
    assert nanovllm.__version__ == version
    assert re.search(rf"^## {re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


def test_linters_have_one_version():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    for repository, package in (("ruff-pre-commit", "ruff"), ("cython-lint", "cython-lint")):
        revision = re.search(rf"{repository}\n\s+rev: v(\S+)", hooks)[1]
        assert re.search(rf'"{package}=={re.escape(revision)}[";]', PYPROJECT)


def test_supported_pythons_agree():
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert 'requires-python = ">=' + classifiers[0] + '"' in PYPROJECT
    wheels = re.findall(r"cp3(\d+)-\*", re.search(r'^build = "(.*)"$', PYPROJECT, re.MULTILINE)[1])
    assert [f"3.{minor}" for minor in wheels] == classifiers
    matrix = re.search(r"python: \[(.*)\]", (ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))[1]
    assert re.findall(r'"(.+?)"', matrix) == classifiers


def test_every_kernel_is_built():
    setup = (ROOT / "setup.py").read_text("utf-8")
    assert {path.stem for path in KERNELS.glob("*.pyx")} == set(re.findall(r'extension\("(\w+)"', setup))
    compiled = set(re.findall(r'"(\w+\.c)"', setup))
    assert {path.name for path in (KERNELS / "csrc").glob("*.c")} == compiled


TARGETS = ("quickstart", "test", "test-debug", "build", "lint", "docs", "bench", "sanitize", "clean")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target(target):
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_files_that_make_and_ci_name_exist():
    for name in ("Makefile", ".ci/run", ".github/workflows/tests.yml"):
        text = (ROOT / name).read_text("utf-8")
        for path in re.findall(r"(?<![\w./-])((?:tools|configs|benchmarks|tests)/[\w./]+\.\w+)", text):
            assert (ROOT / path).is_file(), f"{name} names {path}"


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="not a git clone")
def test_no_source_is_ignored_by_git():
    paths = [str(p.relative_to(ROOT)) for p in [*SOURCES, *CYTHON, *(KERNELS / "csrc").iterdir()]]
    paths += [str(p.relative_to(ROOT)) for p in (ROOT / "tests" / "golden" / "models").rglob("*") if p.is_file()]
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"],
        cwd=ROOT,
        input="\n".join(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
