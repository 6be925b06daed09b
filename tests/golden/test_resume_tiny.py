"""A finished run on a real checkpoint, started again: left alone, or done again exactly where something changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nanovllm
from jobs.cli import main

MODEL = Path(__file__).parent / "models" / "llama-f32"


@pytest.fixture
def folder(tmp_path):
    """A job of three raw prompts and a chat, finished."""
    folder = tmp_path / "job"
    shutil.copytree(MODEL, folder / "model", ignore=shutil.ignore_patterns("expected.*"))
    rows = [{"id": f"p{n}", "prompt": f"row {n}"} for n in range(3)]
    rows.append({"id": "chat", "messages": [{"role": "user", "content": "Hello"}]})
    write(folder, rows)
    assert main(["run", str(folder / "job.yaml")]) == 0
    return folder


def write(folder, rows, engine="", sampling="temperature: 0.9"):
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "job.yaml").write_text(
        f"model: model\ninput: in.jsonl\noutput: out\nprogress: none\nengine: {{dtype: float32{engine}}}\n"
        f"sampling: {{max_tokens: 6, {sampling}}}\n"
    )


def run_again(folder):
    """Gives what the manifest says of the earlier process's rows."""
    assert main(["run", str(folder / "job.yaml")]) == 0
    return json.loads((folder / "out" / "manifest.json").read_text())["resumed"]


def rows_of(folder):
    return [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]


@pytest.fixture
def no_model(monkeypatch):
    """Fail when a model is loaded."""

    def refuse(*arguments, **settings):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(nanovllm, "LLM", refuse)


def test_a_finished_run_is_left_alone_without_its_model(folder, no_model, capsys):
    assert main(["run", str(folder / "job.yaml")]) == 0
    assert "already finished, nothing changed: 4 rows, 0 errors" in capsys.readouterr().err


@pytest.mark.parametrize("engine", [", threads: 1, max_num_seqs: 2", ", reorder: false"])
def test_threads_comments_and_place_change_nothing(folder, no_model, engine):
    write(folder, rows_of(folder), engine=engine)
    (folder / "job.yaml").write_text("# a remark\n" + (folder / "job.yaml").read_text())
    moved = folder.rename(folder.parent / "elsewhere")
    assert main(["run", str(moved / "job.yaml")]) == 0


def test_other_weights_do_all_rows_again(folder, capsys):
    path = folder / "model" / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = (tensors[name] + np.float32(0.25)).astype(tensors[name].dtype)
    save_file(tensors, path)
    assert run_again(folder) == {"kept": 0, "changed": {"model": 4}, "new": 0, "dropped": 0}
    assert "changed since the finished run: model" in capsys.readouterr().err


def test_another_template_does_the_chats_again(folder):
    path = folder / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    path.write_text(json.dumps(config))
    assert run_again(folder) == {"kept": 3, "changed": {"prompt": 1}, "new": 0, "dropped": 0}


def test_other_sampling_does_all_rows_again(folder):
    write(folder, rows_of(folder), sampling="temperature: 0.9, top_k: 5")
    assert run_again(folder)["changed"] == {"sampling": 4}


def test_a_changed_and_a_vanished_row(folder):
    rows = rows_of(folder)
    rows[1]["prompt"] = "another text"
    write(folder, [rows[1], rows[0], rows[3]])
    assert run_again(folder) == {"kept": 2, "changed": {"prompt": 1}, "new": 0, "dropped": 1}
    assert "row 0 (p1) is done again: changed prompt" in (folder / "out" / "run.log").read_text()
