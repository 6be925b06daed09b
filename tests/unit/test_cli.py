"""The command line: help, exit codes, one sentence for each failure."""

import io
import json
import subprocess
import sys

import pytest
from fake_llm import FakeLLM

import jobs.run
import nanovllm
from jobs.cli import COMMANDS, build_parser, main
from jobs.commands.info import aligned_lines
from nanovllm import CheckpointError, RequestError

SCREEN_LINES = 50


class Stdin:
    def __init__(self, data, is_terminal=False):
        self.buffer = io.BytesIO(data)
        self._is_terminal = is_terminal

    def isatty(self):
        return self._is_terminal


@pytest.fixture
def fake(monkeypatch):
    """Put a fake model behind the public names; gives the keyword arguments that LLM got."""
    seen = {}

    def make(model, **settings):
        seen.update(settings, model=model)
        seen["llm"] = FakeLLM()
        return seen["llm"]

    monkeypatch.setattr(nanovllm, "LLM", make, raising=False)
    monkeypatch.setattr(nanovllm, "resolve_model", lambda model, relative_to=None: f"found {model}", raising=False)
    return seen


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_a_screen_and_has_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main([*command.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= SCREEN_LINES
    assert f"\nexample: nanovllm {command}" in out


def test_help_loads_neither_engine_nor_parsers():
    code = (
        "import sys, jobs.cli\n"
        "jobs.cli.main(['run', '--help'])\n"
        "heavy = {'numpy', 'scipy', 'yaml', 'jinja2', 'tokenizers', 'tqdm', 'nanovllm.llm', 'gguf'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_flag_of_the_contract_is_there():
    parser = build_parser()
    (subparsers,) = (action for action in parser._actions if isinstance(action.choices, dict))
    flags = {name: set(sub._option_string_actions) for name, sub in subparsers.choices.items()}
    assert flags["run"] >= {"--model", "--input", "--output", "--set", "--limit", "--restart", "--progress"}
    sampling = {"--max-tokens", "--temperature", "--top-p", "--top-k", "--min-p", "--typical-p", "--seed", "--stop"}
    penalties = {"--repetition-penalty", "--presence-penalty", "--frequency-penalty"}
    engine = {"--dtype", "--threads", "--max-model-len"}
    assert flags["generate"] >= {"--chat", "--system", "--stream", "--top-logits"} | sampling | penalties | engine


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["run"], ["run", "j.yaml", "--limit", "0"], ["run", "j.yaml", "--progress", "loud"]]
)
def test_wrong_flags_exit_2(arguments, capsys):
    assert main(arguments) == 2
    assert "usage: nanovllm" in capsys.readouterr().err


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nanovllm {nanovllm.__version__}\n"


def test_run_passes_flags_over_the_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "in.txt").write_text("abc\nxyz\n")
    (tmp_path / "job.yaml").write_text("model: m\ninput: none.txt\nsampling: {max_tokens: 3, temperature: 1.0}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs.run.run_job, "__defaults__", (lambda job: FakeLLM(), None, None))
    flags = ["--model", "other", "--input", "in.txt", "--output", "out", "--limit", "1", "--progress", "none"]
    assert main(["run", "job.yaml", *flags, "--set", "sampling.temperature=0"]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"results: {tmp_path / 'out' / 'results.jsonl'} (1 lines)" in captured.err
    job = json.loads((tmp_path / "out" / "manifest.json").read_text())["job"]
    assert (job["model"], job["limit"], job["sampling"]) == ("other", 1, {"max_tokens": 3, "temperature": 0})


def test_an_unusable_job_is_one_sentence_and_exit_2(tmp_path, capsys):
    (tmp_path / "job.yaml").write_text("model: m\ninput: none.txt\n")
    assert main(["run", str(tmp_path / "job.yaml")]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"nanovllm run: {tmp_path / 'job.yaml'}, line 2: input: there is no file 'none.txt'")
    assert not (tmp_path / "runs").exists()


def test_generate_prints_the_completion_alone(fake, capsys):
    assert main(["generate", "m", "abcd", "--max-tokens", "3", "--temperature", "0", "--threads", "2"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("dcb\n", "")
    assert (fake["model"], fake["threads"], fake["dtype"], fake["max_model_len"]) == ("found m", 2, "auto", "auto")
    params = fake["llm"].seen[0][2]
    assert (params.max_tokens, params.temperature) == (3, 0.0)


def test_generate_passes_every_sampling_flag(fake):
    flags = (
        "--top-p 0.5 --top-k 4 --min-p 0.25 --typical-p 0.75 --repetition-penalty 1.5 --presence-penalty -1 "
        "--frequency-penalty 0.5 --seed 9 --stop a --stop b"
    )
    assert main(["generate", "m", "abcd", *flags.split()]) == 0
    params = fake["llm"].seen[0][2]
    assert params.to_dict(only_changed=True) == {
        "top_p": 0.5,
        "top_k": 4,
        "min_p": 0.25,
        "typical_p": 0.75,
        "repetition_penalty": 1.5,
        "presence_penalty": -1.0,
        "frequency_penalty": 0.5,
        "seed": 9,
        "stop": ["a", "b"],
    }


@pytest.mark.parametrize("arguments", [["-"], []])
def test_generate_reads_stdin_without_its_line_end(fake, monkeypatch, arguments):
    monkeypatch.setattr(sys, "stdin", Stdin("né\n\n".encode()))
    assert main(["generate", "m", *arguments]) == 0
    assert fake["llm"].seen[0][1] == "né\n"


def test_generate_as_chat(fake):
    assert main(["generate", "m", "hi", "--chat", "--system", "S"]) == 0
    assert fake["llm"].seen[0][1] == "<system>S<user>hi"


def test_generate_streams(fake, capsys):
    assert main(["generate", "m", "abcd", "--stream", "-v"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "dcb\n"
    assert captured.err.startswith("30 prompt tokens, 40 completion tokens, ")


def test_top_logits(fake, capsys):
    assert main(["generate", "m", "abcd", "--top-logits", "2"]) == 0
    assert capsys.readouterr().out == "       7      1.500000  'seven'\n       8     -0.250000  'é\\n'\n"


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["hi", "--system", "S"], b"", "--system needs --chat"),
        ([], b"\xff", "stdin is not valid UTF-8 at character 0"),
        (["a\udcff"], b"", "PROMPT is not valid UTF-8 at character 1"),
        (["hi", "--temperature", "3"], b"", "sampling: temperature is 3.0"),
        (["x" * 2000], b"", "the prompt has 2001 tokens and max_model_len is 1000"),
    ],
)
def test_what_generate_refuses(fake, monkeypatch, capsys, arguments, stdin, message):
    monkeypatch.setattr(sys, "stdin", Stdin(stdin))
    assert main(["generate", "m", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"nanovllm generate: {message}")
    assert captured.err.count("\n") == 1


def test_generate_without_a_prompt_at_a_terminal(fake, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Stdin(b"", is_terminal=True))
    assert main(["generate", "m"]) == 2
    assert "no prompt: give PROMPT, or send it through stdin" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "last_line"),
    [
        (CheckpointError("weights.bin is damaged"), 2, "nanovllm info: weights.bin is damaged"),
        (RequestError("x", "the row is wrong"), 2, "nanovllm info: the row is wrong"),
        (KeyboardInterrupt(), 130, "nanovllm info: interrupted"),
        (KeyError("oops"), 1, "nanovllm info: internal failure (KeyError); the traceback is above"),
    ],
)
def test_how_a_command_fails(monkeypatch, capsys, error, code, last_line):
    def fail():
        raise error

    monkeypatch.setattr(nanovllm, "machine_info", fail, raising=False)
    assert main(["info"]) == code
    err = capsys.readouterr().err
    assert err.splitlines()[-1] == last_line
    assert ("Traceback" in err) is (code == 1)


def test_a_reader_that_leaves_is_no_failure():
    code = (
        "import sys, nanovllm, jobs.cli\n"
        "nanovllm.machine_info = lambda: {str(n): 'x' * 1000 for n in range(1000)}\n"
        "sys.exit(jobs.cli.main(['info']))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    child.stdout.read(10)
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert (child.wait(), err) == (0, b"")


def test_a_full_disk_under_stdout_is_one_sentence():
    code = "import sys, jobs.cli; sys.exit(jobs.cli.main(['completion', 'bash']))"
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "nanovllm completion: the output cannot be written: No space left on device\n"


def test_closed_streams_end_in_the_exit_code():
    code = "import sys, jobs.cli; sys.exit(jobs.cli.main(['run', 'no-such-job.yaml']))"
    done = subprocess.run(["sh", "-c", f'exec "$0" -c "{code}" >&- 2>&-', sys.executable], check=False)
    assert done.returncode == 2


def test_info_lays_facts_out(monkeypatch, capsys):
    facts = {"cpu": "x", "threads": 2, "blas": {"name": "é", "ok": True}, "levels": ["a", "b"], "none": None}
    assert aligned_lines(facts) == [
        "cpu        x",
        "threads    2",
        "blas.name  é",
        "blas.ok    yes",
        "levels     a, b",
        "none       -",
    ]
    monkeypatch.setattr(nanovllm, "machine_info", lambda: facts, raising=False)
    assert main(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == facts


def test_info_of_a_model(fake, monkeypatch, capsys):
    monkeypatch.setattr(nanovllm, "model_info", lambda path: {"path": path}, raising=False)
    assert main(["info", "m"]) == 0
    assert capsys.readouterr().out == "path  found m\n"


def test_convert_and_fetch_demo_pass_their_flags(monkeypatch, capsys):
    calls = []

    def record(*arguments, **options):
        calls.append(([str(argument) for argument in arguments], options))

    monkeypatch.setattr(nanovllm, "convert_gguf", record, raising=False)
    monkeypatch.setattr(nanovllm, "fetch_demo", record, raising=False)
    assert main(["convert", "a.gguf", "out", "--dtype", "F32", "--overwrite", "--quiet"]) == 0
    assert main(["fetch-demo", "demo"]) == 0
    assert calls == [
        (["a.gguf", "out"], {"dtype": "F32", "progress": False, "overwrite": True}),
        (["demo"], {"progress": True}),
    ]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "demo is ready: nanovllm generate demo PROMPT --chat" in captured.err
