"""The documentation says what the code does: commands, options, fields, models, links and the README's example."""

import dataclasses
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import exit_codes
from jobs.cli import COMMANDS, main
from nanovllm import SamplingParams
from nanovllm.config import EngineConfig
from nanovllm.models import SHEETS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TINY_MODEL = ROOT / "tests" / "golden" / "models" / "llama-f32"

# An option in the printed help: after the line's indent or a comma, or inside the usage's brackets.
OPTION = re.compile(r"(?:^ +|, |\[)(--?[a-z][a-z_-]*)", re.MULTILINE)


def code_blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def anchors(text):
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture
def printed_help(monkeypatch, capsys):
    """Gives what `nanovllm COMMAND --help` prints."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")

    def run(command):
        assert main([command, "--help"]) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def section_of():
    """Gives a command's section of docs/cli.md."""
    parts = re.split(r"^## nanovllm ", (ROOT / "docs" / "cli.md").read_text("utf-8"), flags=re.MULTILINE)
    return {part.split("\n", 1)[0]: part for part in parts[1:]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_the_printed_help_is_in_the_reference(command, printed_help, section_of):
    options = set(OPTION.findall(printed_help(command))) - {"-h", "--help"}
    assert options or command == "completion"  # which has none
    missing = {option for option in options if not re.search(rf"[`, ]{re.escape(option)}[`, ]", section_of[command])}
    assert not missing


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_fits_a_screen_and_has_its_example(command, printed_help):
    text = printed_help(command)
    assert len(text.splitlines()) <= 50
    example = text[text.index("example: ") + len("example: ") :]
    assert example.startswith(f"nanovllm {command} ")


def test_the_reference_has_no_command_too_many(section_of):
    assert list(section_of) == list(COMMANDS)


def test_the_reference_is_what_make_docs_writes(tmp_path):
    script = ROOT / "tools" / "cli_reference.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script, tmp_path / "cli.md"], check=True, env=environment, cwd=tmp_path)
    stored = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert (tmp_path / "cli.md").read_text("utf-8") == stored, "docs/cli.md is out of date: run make docs"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_lists_every_command(command):
    assert f"| `nanovllm {command}" in README


def test_the_readme_lists_every_exit_code():
    codes = [value for name, value in vars(exit_codes).items() if name.isupper()]
    assert sorted(codes) == sorted(int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_point_to_files_and_headings_that_exist(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(linked.read_text("utf-8")), f"{page.name} links to {target}"


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(SamplingParams)])
def test_every_sampling_field_is_described_with_its_default(field):
    page = (ROOT / "docs" / "sampling.md").read_text("utf-8")
    row = re.search(rf"^\| `{field}` \| ([^|]*) \|", page, re.MULTILINE)
    assert row, f"docs/sampling.md has no row for {field}"
    default = getattr(SamplingParams(), field)
    words = {None: "null", (): "none", True: "true", False: "false"}
    expected = words[default] if default is None or isinstance(default, (tuple, bool)) else str(default)
    assert row[1] == expected


@pytest.mark.parametrize("model_type", SHEETS)
def test_every_architecture_is_described(model_type):
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    assert re.search(rf"^\| `{model_type}` \| `{SHEETS[model_type].architectures[0]}`", page, re.MULTILINE)
    assert f"`{model_type}`" in README


def test_the_job_file_of_the_readme_is_one(tmp_path):
    from jobs.job_file import load_job

    (tmp_path / "questions.jsonl").write_text('{"prompt": "hello"}\n', "utf-8")
    (tmp_path / "reviews.csv").write_text("id,product,review\n", "utf-8")
    whole, columns = code_blocks(README, "yaml")
    (tmp_path / "job.yaml").write_text(whole, "utf-8")
    job = load_job(tmp_path / "job.yaml")
    assert (job.model, job.prompt.chat, job.sampling["max_tokens"]) == ("./my-model", True, 64)
    (tmp_path / "columns.yaml").write_text(f"model: ./my-model\n{columns}", "utf-8")
    assert load_job(tmp_path / "columns.yaml").prompt.system == "You answer with one word."


def test_the_example_of_the_readme_runs(capsys):
    (source,) = code_blocks(README, "python")
    assert source.count('"demo-model"') == 1
    exec(compile(source.replace('"demo-model"', repr(str(TINY_MODEL))), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("length") + printed.count("stop") >= 2


def test_commands_that_the_readme_shows_are_parsed():
    from jobs.cli import build_parser

    shown = [line.split("#")[0] for block in code_blocks(README, "sh") for line in block.splitlines()]
    shown = [line for line in shown if line.startswith("nanovllm ")]
    assert len(shown) >= 5
    for line in shown:
        import shlex

        build_parser().parse_args(shlex.split(line)[1:])


def test_the_settings_of_an_engine_that_documents_name_exist():
    names = {field.name for field in dataclasses.fields(EngineConfig)}
    for page in PAGES:
        for name in re.findall(r"`engine\.([a-z_]+)`", page.read_text("utf-8")):
            assert name in names, f"{page.name} names engine.{name}"


def test_results_of_a_run_are_shown_as_question_and_answer(tmp_path):
    spec = importlib.util.spec_from_file_location("show_results", ROOT / "tools" / "show_results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    answered = {"text": " Paris. ", "error": None, "row": {"messages": [{"role": "user", "content": "Capital?"}]}}
    refused = {"text": None, "error": {"message": "too long"}, "row": {"prompt": "Once"}}
    assert module.entry(answered) == "> Capital?\n  Paris."
    assert module.entry(refused) == "> Once\n  error: too long"
