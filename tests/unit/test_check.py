"""`nanovllm check` counts what a run would do, shows a row as the model gets it, and names what looks odd."""

import json
import re
from pathlib import Path

import pytest

from jobs.cli import main
from nanovllm import LLM, Tokenizer

# Its tokenizer prepends BOS, and its chat template writes one too; room for 512 positions.
MODEL = Path(__file__).parents[1] / "golden" / "models" / "llama-newstyle"
BOS = "<|endoftext|>"


@pytest.fixture
def check(tmp_path, capsys):
    """Gives (exit code, what was printed on stdout and stderr) for rows, job text and flags."""

    def run(rows, text="", *flags):
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        (tmp_path / "in.jsonl").write_text("\n".join(lines), "utf-8")
        (tmp_path / "job.yaml").write_text(f"model: {MODEL}\ninput: in.jsonl\n{text}", "utf-8")
        code = main(["check", str(tmp_path / "job.yaml"), *flags])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


def ids_of(text):
    return json.loads(re.search(r"^ids: +(\[.*\])$", text, re.MULTILINE)[1])


def test_good_rows_are_counted(check, tmp_path):
    code, text = check([{"prompt": "hi"}, {"prompt_token_ids": [5] * 40}, {"prompt_token_ids": [5] * 45}])
    num_hi = len(Tokenizer.from_pretrained(MODEL).encode("hi"))
    assert code == 0
    assert "rows:     3: 3 ok (0 cut), 0 errors, 0 skipped" in text
    assert f"prompts:  {num_hi + 85} tokens" in text
    assert f"shortest {num_hi}, median 40, 99 % 45, longest 45" in text
    assert re.search(r"^ +32-63 +2 #{40}$", text, re.MULTILINE)
    assert "to come:  at most 48 tokens" in text
    assert re.search(r"memory: +about .* weights, .* KV cache for 64 sequences", text)
    assert not (tmp_path / "runs").exists()


def test_bad_rows_are_named_and_decide_the_exit_code(check):
    rows = [{"prompt": "x", "id": "a"}, {"prompt": "y", "id": "a"}, "{", {"prompt_token_ids": [5] * 600}, {"x": 1}]
    code, text = check(rows)
    assert code == 3
    assert "rows:     5: 1 ok (0 cut), 4 errors, 0 skipped" in text
    for name in ("duplicate_id: 1", "invalid_row: 1", "prompt_too_long: 1", "no_prompt: 1"):
        assert f"  {name}\n" in text
    assert "in.jsonl, line 2: the id 'a' was used before, at" in text
    assert "in.jsonl, line 4: the prompt has 600 tokens" in text
    assert check(rows, "limits: {max_errors: 4}\n")[0] == 0


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        ("error", "2 ok (0 cut), 1 errors, 0 skipped"),
        ("skip", "2 ok (0 cut), 0 errors, 1 skipped"),
        ("truncate_left", "3 ok (1 cut), 0 errors, 0 skipped"),
    ],
)
@pytest.mark.parametrize("chat", [True, False])
def test_overlong_rows_are_counted_as_the_policy_has_it(check, policy, counts, chat):
    rows = [{"prompt": "hi"}, {"prompt": "word " * 700}, {"prompt": "ho"}]
    _, text = check(rows, f"on_overlong: {policy}\nprompt: {{chat: {str(chat).lower()}}}\n")
    assert f"rows:     3: {counts}" in text


def test_a_prompt_that_brings_its_own_bos_is_noted_and_has_one(check):
    rows = [{"messages": [{"role": "user", "content": "hi"}]}, {"prompt": "hi"}, {"prompt": BOS + "hi"}]
    code, text = check(rows)
    assert code == 0
    (note,) = re.findall(r"^note: .*$", text, re.MULTILINE)
    assert "the prompt already starts with BOS; no second one is added: 1 rows" in note
    assert note.endswith("in.jsonl, line 3")
    bos_id = Tokenizer.from_pretrained(MODEL).bos_token_id
    for index in range(3):
        ids = ids_of(check(rows, "", "--row", str(index))[1])
        assert ids[0] == bos_id
        assert ids[1] != bos_id


def test_two_bos_are_noted(check):
    bos_id = Tokenizer.from_pretrained(MODEL).bos_token_id
    _, text = check([{"prompt_token_ids": [bos_id, bos_id, 5]}])
    assert "note:     the prompt starts with BOS twice: 1 rows" in text


def test_a_row_is_shown_as_the_model_gets_it(check):
    rows = [{"prompt": "x"}, {"id": "q", "messages": [{"role": "user", "content": "hi there"}]}]
    code, text = check(rows, "sampling: {max_tokens: 7}\n", "--row", "1")
    shown = f"{BOS}<|im_start|>user\nhi there<|im_end|>\n<|im_start|>assistant\n"
    assert code == 0
    assert text.startswith("row:      1 (id 'q'), ")
    assert "max_tokens 7" in text
    assert shown in text
    assert ids_of(text) == Tokenizer.from_pretrained(MODEL).encode(shown, add_special_tokens=False)


def test_a_bad_row_is_shown_with_its_error(check):
    code, text = check([{"prompt": 7}], "", "--row", "0")
    assert code == 3
    assert "error:    invalid_prompt: " in text
    assert check([{"prompt": "x"}], "", "--row", "1")[0] == 2


def test_batches_are_checked_too(check):
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}
    code, text = check([line, {**line, "custom_id": "b", "body": {**body, "stream": True}}])
    assert code == 3
    assert "  unsupported_field: 1\n" in text
    assert "to come:  at most 3 tokens" in text


def test_a_template_that_does_not_open_the_turn_is_noted(check, tmp_path):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    _, text = check([{"prompt": "x"}], f"prompt: {{chat: true}}\nengine: {{chat_template: '{template}'}}\n")
    assert "note:     the chat template does not open the assistant's turn: 1 rows" in text


def test_no_weight_is_loaded(check, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("nanovllm.engine.llm_engine.load_weights", fail)
    assert check([{"prompt": "x"}])[0] == 0
    with pytest.raises(AssertionError, match="weights were loaded"):
        LLM(MODEL)


def test_a_model_that_is_not_there_is_said_in_a_sentence(check, tmp_path):
    code, text = check([{"prompt": "x"}], "", "--model", str(tmp_path / "none"))
    assert code == 2
    assert "Traceback" not in text


def test_too_little_memory_is_said_beforehand(check):
    code, text = check([{"prompt": "x"}], "engine: {kv_cache_memory: 1kB}\n")
    assert code == 2
    assert "the KV cache of" in text


def test_the_time_is_measured(check):
    code, text = check([{"prompt": "x"}], "", "--time")
    assert code == 0
    assert re.search(r"^time: +at most about \d+ s, .*first 1 rows: \d+ prompt tokens/s", text, re.MULTILINE)


@pytest.mark.parametrize(("task", "is_shown"), [("generate", True), ("multiple_choice", False), ("perplexity", False)])
def test_sampling_is_shown_where_something_is_sampled(check, task, is_shown):
    more = {"generate": ", target: a", "multiple_choice": ", target: a, choices: c"}.get(task, "")
    row = {"prompt": "x", "a": 0, "c": ["y", "z"]}
    code, text = check([row], f"eval: {{task: {task}{more}}}\n", "--row", "0")
    assert code == 0
    assert (re.search("^sampling: .*max_tokens 256", text, re.MULTILINE) is not None) is is_shown
    assert ("max_tokens" in text) is is_shown
