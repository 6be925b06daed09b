"""`nanovllm lm-eval` and the harness's own command line, on local data and a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval.api.model", reason="lm-evaluation-harness is not installed (extra lm-eval)")

from jobs.cli import main

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "tests" / "golden" / "models" / "llama-f32"
TASKS = "tests/lm_eval/tasks"


def run(*arguments):
    """Run a module's command line in a process of its own, in the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LMEVAL_LOG_LEVEL": ""}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=ROOT, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `nanovllm lm-eval` in this process: its exit code and what it wrote to stderr."""
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(ROOT)
    # It would hold on to the stderr of this test.
    monkeypatch.setattr("lm_eval.utils.setup_logging", lambda: None)

    def start(*arguments):
        code = main(["lm-eval", "--model", str(MODEL), "--include_path", TASKS, *map(str, arguments)])
        return code, capsys.readouterr().err

    return start


def scores(folder):
    (path,) = folder.rglob("results_*.json")
    results = json.loads(path.read_text("utf-8"))
    return results, {
        (task, key): value
        for task, values in results["results"].items()
        for key, value in values.items()
        if "," in key and "stderr" not in key
    }


@pytest.mark.slow
def test_both_command_lines_give_the_same_scores_and_files(tmp_path):
    tasks = "local_choices,local_text"
    ours = run(
        "jobs", "lm-eval", "--model", MODEL, "--dtype", "float32", "--max_length", 256, "--tasks", tasks,
        "--include_path", TASKS, "--num_fewshot", 2, "--limit", 6, "--output_path", tmp_path / "ours", "--log_samples",
        "--batch_size", 8, "--use_cache", tmp_path / "answers",
    )  # fmt: skip
    assert ours.returncode == 0, ours.stderr
    assert "|local_choices|" in ours.stdout and "|acc_norm" in ours.stdout
    assert "--batch_size is ignored" in ours.stderr
    assert (tmp_path / "answers_rank0.db").is_file()
    theirs = run(
        "jobs.lm_eval_adapter", "run", "--model", "nanovllm", "--tasks", tasks, "--include_path", TASKS,
        "--model_args", f"pretrained={MODEL},dtype=float32,max_length=256", "--num_fewshot", 2, "--limit", 6,
        "--output_path", tmp_path / "theirs", "--log_samples",
    )  # fmt: skip
    assert theirs.returncode == 0, theirs.stderr
    (results, found), (_, expected) = scores(tmp_path / "ours"), scores(tmp_path / "theirs")
    assert found == expected and len(found) == 5
    assert results["config"]["model"] == "nanovllm"
    assert results["config"]["model_dtype"] == "float32"
    (samples,) = (tmp_path / "ours").rglob("samples_local_choices_*.jsonl")
    assert len(samples.read_text("utf-8").splitlines()) == 6


def test_generation_as_chat(command, tmp_path):
    code, err = command(
        "--tasks", "local_questions", "--limit", 2, "--apply_chat_template", "--num_fewshot", 1,
        "--system_instruction", "Be brief.", "--gen_kwargs", '{"max_gen_toks": 4, "until": ["\\n\\n"]}',
        "--output_path", tmp_path, "--log_samples",
    )  # fmt: skip
    assert code == 0, err
    (path,) = tmp_path.rglob("samples_*.jsonl")
    prompt, settings = json.loads(path.read_text("utf-8").splitlines()[0])["arguments"]["gen_args_0"].values()
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert prompt.endswith("<|im_end|>\n<|im_start|>assistant\n") and prompt.count("<|im_start|>") == 5
    assert (settings["max_gen_toks"], settings["until"]) == (4, ["\n\n"])
    assert scores(tmp_path)[0]["chat_template"].startswith("{% for message in messages %}")


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--tasks", "local_choice"], "there is no task 'local_choice'; did you mean 'local_choices'?"),
        (["--tasks", "gsm8k"], "--tasks: gsm8k cannot be loaded"),
        (["--tasks", "local_choices", "--log_samples"], "--log_samples: give --output_path too"),
        (["--tasks", "local_choices", "--fewshot_as_multiturn"], "give --apply_chat_template too"),
        (
            ["--tasks", "local_choices", "--model_args", "dtypo=1"],
            "unknown engine setting 'dtypo'; did you mean 'dtype'",
        ),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(command, arguments, sentence):
    code, err = command(*arguments)
    assert code == 2
    last = err.strip().splitlines()[-1]
    assert last.startswith("nanovllm lm-eval: ") and sentence in last
    assert "Traceback" not in err
