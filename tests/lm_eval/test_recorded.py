"""What the harness's `hf` model answered on the demo model in float32, and what we answer through its command line.

recorded/hf.json was written by

    python benchmarks/lm_eval_peer.py compare demo-model --peer PYTHON --max-length 512 --num-questions 8 \
      --choices tests/lm_eval/data/choices.jsonl --text tests/lm_eval/data/texts.jsonl \
      --gsm8k configs/data/gsm8k_test.jsonl --record tests/lm_eval/recorded/hf.json
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval.api.model", reason="lm-evaluation-harness is not installed (extra lm-eval)")

ROOT = Path(__file__).parents[2]
MODEL = os.environ.get("NANOVLLM_DEMO_MODEL")
RECORDED = json.loads((Path(__file__).parent / "recorded" / "hf.json").read_text("utf-8"))
MAX_LENGTH = 512  # of the recording
MARGIN = 1e-3  # of the two best logits; below it, rounding may choose another token

pytestmark = [
    pytest.mark.weights,
    pytest.mark.skipif(MODEL is None, reason="NANOVLLM_DEMO_MODEL names no folder; see `nanovllm fetch-demo`"),
]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The harness's results and samples of the three recorded tasks, by its own command line."""
    folder = tmp_path_factory.mktemp("results")
    ended = subprocess.run(
        [
            sys.executable, "-m", "jobs.lm_eval_adapter", "run", "--model", "nanovllm", "--include_path",
            "tests/lm_eval/tasks", "--tasks", ",".join(RECORDED), "--output_path", folder, "--log_samples",
            "--model_args", f"pretrained={MODEL},dtype=float32,max_length={MAX_LENGTH}", "--samples",
            json.dumps({task: [one["id"] for one in recorded["responses"]] for task, recorded in RECORDED.items()}),
        ],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    (path,) = folder.rglob("results_*.json")
    samples = {}
    for task in RECORDED:
        (file,) = folder.rglob(f"samples_{task}_*.jsonl")
        rows = map(json.loads, file.read_text("utf-8").splitlines())
        samples[task] = {row["doc_id"]: [response[0] for response in row["resps"]] for row in rows}
    return json.loads(path.read_text("utf-8"))["results"], samples


def pairs(task, samples):
    """(recorded answer, our answer, prompt) of each request."""
    for one in RECORDED[task]["responses"]:
        yield from zip(one["answers"], samples[task][one["id"]], one["prompts"], strict=True)


def test_the_log_likelihood_of_every_choice(evaluated):
    results, samples = evaluated
    found = list(pairs("local_choices", samples))
    assert len(found) == 96
    for (expected, expected_greedy), (logprob, is_greedy), _ in found:
        assert float(logprob) == pytest.approx(expected, abs=1e-3)
        assert str(is_greedy) == str(expected_greedy)
    for metric in ("acc,none", "acc_norm,none"):
        assert results["local_choices"][metric] == RECORDED["local_choices"]["scores"][metric]


def test_the_log_likelihood_of_texts_longer_than_the_context(evaluated):
    results, samples = evaluated
    for expected, found, _ in pairs("local_text", samples):
        assert float(found) == pytest.approx(expected, rel=1e-4)
    for metric in ("word_perplexity,none", "byte_perplexity,none", "bits_per_byte,none"):
        assert results["local_text"][metric] == pytest.approx(RECORDED["local_text"]["scores"][metric], rel=1e-3)


def test_generated_texts_are_equal_to_the_first_small_margin(evaluated):
    from nanovllm import LLM

    results, samples = evaluated
    found = list(pairs("local_gsm8k", samples))
    assert len(found) == 8
    differing = [(expected, text, prompt) for expected, text, prompt in found if text != expected]
    if not differing:
        metric = "exact_match,last-number"
        assert results["local_gsm8k"][metric] == RECORDED["local_gsm8k"]["scores"][metric]
        return
    llm = LLM(MODEL, dtype="float32", max_model_len=MAX_LENGTH)
    for expected, text, prompt in differing:
        one, other = (llm.get_tokenizer().encode(prompt + answer) for answer in (expected, text))
        begin = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        (_, best, _), (_, second, _) = llm.top_logits(one[:begin], 2)
        assert best - second < MARGIN
