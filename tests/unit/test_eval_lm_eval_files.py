"""The harness's files: names, keys, and one sample for each row, as the harness itself writes them."""

import dataclasses
import datetime
import gzip
import hashlib
import json
import shutil

import pytest
from eval_shop import EvalLLM, EvalShop

from jobs.job_file import load_job
from jobs.run import run_job


@pytest.fixture
def shop(tmp_path):
    return EvalShop(tmp_path)


def files(shop):
    (results,) = shop.out.glob("results_*.json")
    (samples,) = shop.out.glob("samples_*.jsonl")
    lines = samples.read_text("utf-8").splitlines()
    return results, samples, json.loads(results.read_text("utf-8")), [json.loads(line) for line in lines]


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_multiple_choice_files(shop):
    text = 'name: my-task\nprompt: {template: "{{ q }}", chat: false}\n'
    text += "eval: {task: multiple_choice, choices: c, target: t, format: lm_eval}\n"
    row = {"q": "one é", "c": ["a", "bb"], "t": 0}
    assert shop.run(text, [row], EvalLLM()) == 0
    results_path, samples_path, results, (sample,) = files(shop)
    started = json.loads(shop.bytes("manifest.json"))["started"]
    time = started.removesuffix("+00:00").replace(":", "-")
    assert (results_path.name, samples_path.name) == (f"results_{time}.json", f"samples_my_task_{time}.jsonl")
    assert sample == {
        "doc_id": 0,
        "doc": row,
        "target": "0",
        "arguments": {
            "gen_args_0": {"arg_0": "one é", "arg_1": " a"},
            "gen_args_1": {"arg_0": "one é", "arg_1": " bb"},
        },
        "resps": [[["-1.0", "True"]], [["-2.0", "False"]]],
        "filtered_resps": [["-1.0", "True"], ["-2.0", "False"]],
        "filter": "none",
        "metrics": ["acc", "acc_norm"],
        "doc_hash": sha256(json.dumps(row, indent=2, ensure_ascii=False)),
        "prompt_hash": sha256("one é"),
        "target_hash": sha256("0"),
        "acc": 1.0,
        "acc_norm": 1.0,
    }
    assert results["results"] == {
        "my_task": {
            "alias": "my_task", "name": "my_task", "sample_len": 1, "acc,none": 1.0, "acc_stderr,none": "N/A",
            "acc_norm,none": 1.0, "acc_norm_stderr,none": "N/A",
        }
    }  # fmt: skip
    assert results["higher_is_better"] == {"my_task": {"acc": True, "acc_norm": True}}
    assert results["n-shot"] == {"my_task": 0}
    assert results["n-samples"] == {"my_task": {"original": 1, "effective": 1}}
    assert results["task_hashes"]["my_task"] == sha256(
        sample["doc_hash"] + sample["prompt_hash"] + sample["target_hash"]
    )
    assert results["configs"]["my_task"]["output_type"] == "multiple_choice"
    assert results["config"]["model"] == "nanovllm"
    assert isinstance(results["date"], float)
    assert datetime.datetime.fromtimestamp(results["date"], datetime.timezone.utc).isoformat() == started


def test_generate_files_leave_error_rows_out(shop):
    text = 'prompt: {template: "{{ q }}", chat: false}\nlimits: {max_errors: 1}\n'
    text += "sampling: {stop: ['Q']}\neval: {task: generate, target: a, format: lm_eval}\n"
    rows = [{"q": "one", "a": "4"}, {"q": "two"}, {"q": "six", "a": "6"}]
    assert shop.run(text, rows, EvalLLM({"one": " 4", "six": " 5"})) == 0
    _, _, results, samples = files(shop)
    assert [sample["doc_id"] for sample in samples] == [0, 2]
    assert samples[0]["arguments"]["gen_args_0"]["arg_0"] == "one"
    assert samples[0]["arguments"]["gen_args_0"]["arg_1"] == {
        "until": ["Q"], "max_gen_toks": 256, "do_sample": False, "temperature": 0.0,
    }  # fmt: skip
    assert (samples[0]["resps"], samples[0]["filtered_resps"]) == ([[" 4"]], ["4"])
    assert [sample["exact_match"] for sample in samples] == [1.0, 0.0]
    assert results["results"]["job"]["exact_match,none"] == pytest.approx(1 / 3)
    assert isinstance(results["results"]["job"]["exact_match_stderr,none"], float)


def test_perplexity_files(shop):
    assert shop.run("eval: {task: perplexity, format: lm_eval}\n", [{"prompt": "ab c"}, {"prompt": "d"}]) == 0
    _, _, results, samples = files(shop)
    assert samples[0]["arguments"] == {"gen_args_0": {"arg_0": "ab c"}}
    assert (samples[0]["resps"], samples[0]["filtered_resps"]) == ([["-8.0"]], ["-8.0"])
    assert samples[0]["word_perplexity"] == [-8.0, 2]
    assert samples[0]["bits_per_byte"] == [-8.0, 4]
    assert results["configs"]["job"]["output_type"] == "loglikelihood_rolling"


def test_the_target_of_a_text_is_the_text_or_the_name_of_its_file(shop):
    text = 'prompt: {template: "<{{ x }}>", chat: false}\neval: {task: perplexity, format: lm_eval}\n'
    assert shop.run(text, [{"x": "ab"}]) == 0
    assert files(shop)[3][0]["target"] == "<ab>"
    shutil.rmtree(shop.out)
    (shop.folder / "book.txt").write_text("ab c")
    text = "model: fake\ninput: book.txt\noutput: run\nprogress: none\n"
    (shop.folder / "job.yaml").write_text(text + "eval: {task: perplexity, whole_file: true, format: lm_eval}\n")
    assert run_job(load_job(shop.folder / "job.yaml"), lambda job: EvalLLM()) == 0
    assert files(shop)[3][0]["target"] == str(shop.folder / "book.txt")


@pytest.mark.parametrize(
    ("prompt", "row", "is_chat"),
    [
        ("{template: '{{ q }}', chat: false}", {"q": "one"}, False),
        ("{template: '{{ q }}', chat: false}", {"q": "one", "messages": [{"role": "user", "content": "x"}]}, False),
        ("{template: '{{ q }}', chat: true}", {"q": "one"}, True),
        ("{chat: false}", {"messages": [{"role": "user", "content": "one"}]}, True),
        ("{chat: false}", {"prompt": "one"}, False),
    ],
)
def test_the_chat_template_is_named_where_it_frames_prompts(shop, prompt, row, is_chat):
    class ChatLLM(EvalLLM):
        def facts(self):
            return {**super().facts(), "tokenizer": {"sha256": "5" * 64, "chat_template_sha256": "6" * 64}}

    text = f"prompt: {prompt}\neval: {{task: generate, target: a, format: lm_eval}}\n"
    assert shop.run(text, [{**row, "a": "4"}], ChatLLM()) == 0
    results = files(shop)[2]
    assert results["chat_template_sha"] == ("6" * 64 if is_chat else None)
    assert results["chat_template"] is None


def test_with_a_limit_the_whole_input_is_counted_too(shop):
    text = "limit: 2\neval: {task: perplexity, format: lm_eval}\n"
    assert shop.run(text, [{"prompt": "ab"}, {"prompt": "cd"}, {"prompt": "ef"}, {"prompt": "gh"}]) == 0
    assert files(shop)[2]["n-samples"] == {"job": {"original": 4, "effective": 2}}
    assert files(shop)[2]["results"]["job"]["sample_len"] == 2


def test_an_input_that_cannot_be_counted_cheaply_counts_as_what_was_done(shop):
    job = shop.load("limit: 1\neval: {task: perplexity, format: lm_eval}\n", [])
    with gzip.open(shop.folder / "in.jsonl.gz", "wt") as file:
        file.write('{"prompt": "ab"}\n{"prompt": "cd"}\n')
    job = dataclasses.replace(job, inputs=(str(shop.folder / "in.jsonl.gz"),))
    assert run_job(job, lambda job: EvalLLM()) == 0
    assert files(shop)[2]["n-samples"] == {"job": {"original": 1, "effective": 1}}


def test_without_the_format_there_are_no_such_files(shop):
    assert shop.run("eval: {task: perplexity}\n", [{"prompt": "ab c"}]) == 0
    assert not list(shop.out.glob("results_*")) + list(shop.out.glob("samples_*"))
