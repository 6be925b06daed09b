"""`nanovllm lm-eval` where lm-evaluation-harness is not installed, and flags that cannot be read."""

import sys

import pytest

from jobs.cli import main


def test_without_the_harness_the_command_says_how_to_get_it(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval" or name == "jobs.lm_eval_adapter"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in ("HF_DATASETS_OFFLINE", "HF_HUB_OFFLINE", "HF_EVALUATE_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    assert main(["lm-eval", "--model", "nowhere", "--tasks", "any"]) == 2
    assert "pip install 'nanovllm[lm-eval]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag, value, message",
    [
        ("--limit", "0", "expected a number of documents or a share below 1, found '0'"),
        ("--limit", "1.5", "expected a number of documents or a share below 1"),
        ("--seed", "1,2", "expected one number or four, found '1,2'"),
        ("--enable_thinking", "perhaps", "expected true or false, found 'perhaps'"),
    ],
)
def test_values_that_cannot_be_meant(capsys, flag, value, message):
    assert main(["lm-eval", "--model", "nowhere", "--tasks", "any", flag, value]) == 2
    assert message in capsys.readouterr().err
