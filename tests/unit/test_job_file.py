"""Job files are read as their authors mean them, or refused with file, line, key, value and cure."""

import datetime
from pathlib import Path

import pytest

from jobs.job_file import Limits, Override, PromptSettings, job_from_flags, load_job, parse_set
from jobs.sharding import Shard
from nanovllm import ConfigError

BASE = "model: m\ninput: in.jsonl\n"
CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture
def load(tmp_path, monkeypatch):
    (tmp_path / "in.jsonl").write_text('{"prompt": "x"}\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def load(text, *overrides, base=BASE):
        path = tmp_path / "job.yaml"
        path.write_bytes((base + text).encode())
        return load_job(path, list(overrides), today=datetime.date(2026, 11, 25))

    return load


def refusal(load, text, *overrides, base=BASE):
    with pytest.raises(ConfigError) as caught:
        load(text, *overrides, base=base)
    return str(caught.value)


def test_defaults(load, tmp_path):
    job = load("")
    assert job.name == "job"
    assert job.inputs == (str(tmp_path / "in.jsonl"),)
    assert job.output == tmp_path / "runs" / "job"
    assert job.prompt == PromptSettings(None, None, False)
    assert (job.sampling, job.engine, job.on_overlong, job.limits) == ({}, {}, "error", Limits(0, 0.0))
    assert (job.limit, job.restart, job.progress) == (None, False, "auto")


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("sampling: {temperature: 1e-1}", "temperature", 0.1),
        ("sampling: {max_tokens: 1e2}", "max_tokens", 100),
        ("sampling: {max_tokens: 0x10}", "max_tokens", 16),
        ("sampling: {seed: 0o10}", "seed", 8),
        ("sampling: {stop: [no]}", "stop", ["no"]),
        ("sampling: {stop: [010, 1:30, 2026-11-25]}", "stop", ["010", "1:30", "2026-11-25"]),
        ('sampling: {stop: ["\\n\\n"]}', "stop", ["\n\n"]),
        ("sampling: {ignore_eos: True}", "ignore_eos", True),
        ("sampling: {top_p: .5}", "top_p", 0.5),
        ("sampling: {top_k: -1}", "top_k", -1),
    ],
)
def test_values_are_read_as_meant(load, text, key, value):
    found = load(text).sampling[key]
    assert found == value
    assert type(found) is type(value)


def test_a_name_that_looks_like_a_date_is_text(load):
    assert load("name: 2026-11-25\n").name == "2026-11-25"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sampling: {seed: 010}", "line 3: sampling.seed: seed is '010', expected an integer"),
        ("sampling: {seed: 010}", "write 10 (a leading zero means octal to some readers and nothing to others)"),
        ("sampling: {max_tokens: 1_000}", "write the number with neither quotes nor underscores"),
        ("sampling: {ignore_eos: yes}", "sampling.ignore_eos: ignore_eos is 'yes'"),
        ("sampling: {ignore_eos: yes}", ": write true or false"),
        ("sampling:\n  temperature: .inf", "line 4: '.inf' is not a number that can be read"),
        ("sampling:\n  temperatur: 1", "line 4: sampling.temperatur is not a known key: did you mean 'temperature'?"),
        ("sampling: {best_of: 2}", "sampling.best_of is not a known key: ask for n completions and choose among them"),
        ("sampling:\n  top_p: 0.5\n  max_tokens: 0", "line 5: sampling.max_tokens: max_tokens is 0"),
        ("sampling: {n: 2, temperature: 0}", "line 3: sampling: n is 2, expected 1"),
        ("sampling: 7", "line 3: sampling is 7, expected keys with values"),
        ("sampling: {}\nsampling: {}", "line 4: the key 'sampling' is given twice, first in line 3: keep one"),
        ("engine: {seed: 1, seed: 1}", "line 3: the key 'seed' is given twice, first in line 3: keep one"),
        ("engine:\n\tseed: 1", "line 4: a tab stands where YAML takes only spaces: indent with spaces"),
        ("engine: {thread: 1}", "engine.thread is not a known key: did you mean 'threads'?"),
        ("engine: {dtype: float99}", "line 3: engine.dtype: dtype: expected one of"),
        ("engine: {enable_prefix_caching: no}", "found 'no': write true or false"),
        ("promt: {}", "line 3: promt is not a known key: did you mean 'prompt'?"),
        ("prompt: {chat: on}", "line 3: prompt.chat is 'on', expected true or false: write true or false"),
        ("prompt: {system: x, chat: false}", "prompt.system: a system message needs prompt.chat: true"),
        ("prompt: {template: [x]}", "prompt.template is ['x'], expected text"),
        ("on_overlong: drop", "on_overlong is 'drop', expected one of error, truncate_left"),
        ("prompt: {chat: true}\non_overlong: skip\nlimits: {max_errors: -1}", "line 5: limits.max_errors is -1"),
        ("limits: {max_error_rate: 1.5}", "limits.max_error_rate is 1.5, expected a number from 0 to 1"),
        ("limits: {max_errors: true}", "limits.max_errors is True, expected an integer of at least 0"),
        ("limits: {deadline: soon}", "limits.deadline is 'soon', expected a time such as 45s, 30m, 2h or 1h30m"),
        ("limits: {deadline: 0}", "limits.deadline is 0, expected a time such as 45s, 30m, 2h or 1h30m"),
        ("limits: {stop_early: 1}", "limits.stop_early is 1, expected true or false"),
        ("shard: 5/4", "line 3: shard is '5/4', expected I/N, such as 0/4: part I of N"),
        ("eval: {task: generat}", "line 3: eval.task is 'generat', expected one of generate, multiple_choice"),
        ("shards: 1/2", "line 3: shards is not a known key"),
        ("name: &a x\noutput: *a", "line 4: the alias *a is not read here: write the value out"),
        ("name: !!python/name:os.system x", "line 3: the tag tag:yaml.org,2002:python/name:os.system is not read"),
        ("output: 'runs/{job}'", "line 3: output: '{job}' in 'runs/{job}' is unknown: output knows {date} and {name}"),
        (r'output: "runs/{\L}"', r"output: '{\u2028}' in 'runs/{\u2028}' is unknown"),  # a message stays one line
        ("name: [", "this is not YAML"),
        ("? [a]\n: 1", "line 3: a key must be plain text"),
        ("---\nname: x", "one document is expected, and here a second begins"),
        ("name: \x07", "line 3: the character U+0007 is not allowed in YAML"),
        ("name: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_refusals_name_line_key_value_and_cure(load, tmp_path, text, message):
    found = refusal(load, text)
    assert message in found
    assert found.startswith(str(tmp_path / "job.yaml"))


def test_flags_of_keys_that_mean_nothing_yet_may_be_off(load):
    assert load("limits: {deadline: null, stop_early: false}").limits == Limits(0, 0.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), ("1.5h", 5400), ("90", 90)]
)
def test_a_deadline_is_a_length_of_time(load, text, seconds):
    assert load(f"limits: {{deadline: {text}}}").limits.deadline == seconds


def test_token_ids_are_asked_for_by_a_key(load):
    assert (load("return_token_ids: true").return_token_ids, load("").return_token_ids) == (True, False)
    assert "line 3: return_token_ids is 'yes', expected true or false: write true or false" in refusal(
        load, "return_token_ids: yes"
    )
    scored = "return_token_ids: true\neval: {task: multiple_choice, choices: c, target: t}"
    assert "line 3: return_token_ids: the task multiple_choice generates nothing" in refusal(load, scored)


def test_a_shard_has_a_folder_of_its_own(load):
    job = load("shard: 3/4\noutput: out/x")
    assert (job.shard, job.output.name) == (Shard(3, 4), "x-3-of-4")
    assert load("shard: 4/4").shard == Shard(0, 4)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("input: in.jsonl\n", "model is missing: write it into the job file or give --model"),
        ("model: m\n", "input is missing: write it into the job file or give --input"),
        ("model: m\ninput: [in.jsonl, 3]\n", "line 2: input is 3, expected a text or a list of texts"),
        ("model: m\ninput: none.jsonl\n", "line 2: input: there is no file 'none.jsonl' (looked in "),
        ("model: m\ninput: '*.csv'\n", "line 2: input: no file matches '*.csv'"),
        ("model: m\ninput: elsewhere\n", "elsewhere is a folder: name its files, for instance elsewhere/*.jsonl"),
        ("- model\n", "is not a job file: it must hold keys such as model, input and output"),
        ("", "model is missing"),
        ("model: '${NANOVLLM_TEST_UNSET}/m'\ninput: in.jsonl\n", "the environment variable 'NANOVLLM_TEST_UNSET' in"),
    ],
)
def test_what_a_job_must_have(load, base, message):
    assert message in refusal(load, "", base=base)


def test_a_job_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"no.yaml cannot be read: No such file"):
        load_job(tmp_path / "no.yaml")


def test_a_job_file_in_another_encoding(tmp_path):
    (tmp_path / "job.yaml").write_bytes("model: m".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"job.yaml is not valid UTF-8 at byte 1: save it as UTF-8"):
        load_job(tmp_path / "job.yaml")


def test_inputs_are_looked_up_beside_the_job_file_and_then_here(load, tmp_path):
    Path("here.txt").write_text("x\n")
    for name in ("b.csv", "a.csv", "in.txt"):
        (tmp_path / name).write_text("c\n1\n")
    Path("in.txt").write_text("not this one\n")
    job = load("", base="model: m\ninput: [here.txt, '*.csv', in.txt, a.csv, '-']\n")
    here = Path.cwd()
    assert job.inputs == (
        str(here / "here.txt"),
        str(tmp_path / "a.csv"),
        str(tmp_path / "b.csv"),
        str(tmp_path / "in.txt"),
        "-",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('output: "a\\0b"\n', "line 3: output: 'a\\x00b' holds a null byte, which no path can"),
        ('input: "a\\0b"\n', "line 2: input: 'a\\x00b' holds a null byte, which no path can"),
        ("output: ~no-such-user/runs\n", "line 3: output: '~no-such-user/runs' begins with ~ and names no user"),
        (f"input: {'x' * 300}\n", f"'{'x' * 116}... "),  # is too long, or is not there
    ],
)
def test_what_can_be_no_path_is_refused(load, text, message):
    base = "model: m\n" if text.startswith("input") else BASE
    assert message in refusal(load, text, base=base)


def test_output_placeholders_and_variables(load, tmp_path, monkeypatch):
    monkeypatch.setenv("NANOVLLM_TEST_ROOT", "r{x}")
    job = load("name: n\noutput: '${NANOVLLM_TEST_ROOT}/{name}-{date}'\n")
    assert job.output == tmp_path / "r{x}" / "n-2026-11-25"


def test_the_command_line_wins_and_starts_at_the_working_directory(load, tmp_path):
    Path("mine.jsonl").write_text("{}\n")
    job = load(
        "sampling: {max_tokens: 5, seed: 1}\nlimit: 3\nprogress: json\n",
        Override(("model",), "other", "--model"),
        Override(("input",), ["mine.jsonl"], "--input"),
        Override(("output",), "out", "--output"),
        Override(("limit",), 9, "--limit"),
        parse_set("sampling.max_tokens=7"),
        parse_set('sampling.stop=[no, "\\n"]'),
        parse_set("limits.max_errors=2"),
    )
    here = Path.cwd()
    assert (job.model, job.model_folder) == ("other", here)
    assert (job.inputs, job.output) == ((str(here / "mine.jsonl"),), here / "out")
    assert job.sampling == {"max_tokens": 7, "seed": 1, "stop": ["no", "\n"]}
    assert (job.limits.max_errors, job.limit, job.progress) == (2, 9, "json")


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("sampling.max_tokens", "--set sampling.max_tokens: write a key, = and a value"),
        ("sampling..x=1", "--set sampling..x=1: write a key, = and a value"),
        ("sampling.max_tokens=many", "--set sampling.max_tokens=many: sampling.max_tokens: max_tokens is"),
        ("sampling.seed=010", "write 10"),
        ("name.x=1", "--set name.x=1: name is a single value and has no keys below it"),
        ("samplin.seed=1", "--set samplin.seed=1: samplin is not a known key: did you mean 'sampling'?"),
        ("sampling.stop=[", "--set sampling.stop=[: this is not YAML"),
    ],
)
def test_a_wrong_set_names_itself(load, argument, message):
    with pytest.raises(ConfigError) as caught:
        load("name: x\n", parse_set(argument))
    assert message in str(caught.value)


def test_prompt_section_means_chat_unless_it_says_otherwise(load):
    assert load("prompt: {template: x}").prompt == PromptSettings("x", None, True)
    assert load("prompt: {template: x, chat: false}").prompt == PromptSettings("x", None, False)
    assert load("prompt:\n").prompt == PromptSettings(None, None, False)


@pytest.mark.parametrize(("num_errors", "allowed"), [(0, True), (2, True), (3, True), (5, True), (6, False)])
def test_the_larger_limit_counts(num_errors, allowed):
    assert Limits(max_errors=2, max_error_rate=0.05).allow(num_errors, 100) is allowed
    assert Limits(max_errors=5, max_error_rate=0.01).allow(num_errors, 100) is allowed


def test_every_example_is_known():
    assert sorted(path.name for path in CONFIGS.glob("*.yaml")) == [
        "completion_text.yaml",
        "csv_template.yaml",
        "eval_classification.yaml",
        "eval_gsm8k_8shot.yaml",
        "eval_gsm8k_chat.yaml",
        "eval_json_extraction.yaml",
        "eval_multiple_choice.yaml",
        "eval_perplexity.yaml",
        "int8_engine.yaml",
        "logprobs.yaml",
        "long_prompts.yaml",
        "many_inputs.yaml",
        "messages_tools.yaml",
        "openai_batch.yaml",
        "quickstart.yaml",
        "row_sampling.yaml",
        "sampling_rules.yaml",
        "sharded.yaml",
        "shared_prefix.yaml",
        "structured_output.yaml",
        "token_ids.yaml",
        "unattended.yaml",
    ]


def test_a_job_may_be_written_in_flags_alone(tmp_path):
    (tmp_path / "in.jsonl").touch()
    values = {"model": "m", "input": str(tmp_path / "in.jsonl"), "served_model_name": ["a", "b"]}
    overrides = [Override((key,), value, f"--{key}") for key, value in values.items()]
    job = job_from_flags(tmp_path / "out.jsonl", overrides)
    assert (job.model, job.inputs, job.served_model_name) == ("m", (str(tmp_path / "in.jsonl"),), ("a", "b"))
    assert job.name == "out"
    with pytest.raises(ConfigError, match=r"--input_format is 'csv', expected one of auto, openai_batch"):
        job_from_flags(tmp_path / "out.jsonl", [*overrides, Override(("input_format",), "csv", "--input_format")])
