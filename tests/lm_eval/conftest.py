"""Models of lm-evaluation-harness over small checkpoints, and its requests."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory):
    """Where the data sets go that the harness makes of local files; read once, when its packages are imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("huggingface")))
        yield os.environ["HF_HOME"]


@pytest.fixture
def make_lm(make_llm):
    """Factory of the harness's model over a tiny checkpoint: make_lm(CASE, engine settings, **of the model)."""

    def make(case="llama-f32", engine=(), **options):
        from jobs.lm_eval_adapter import NanovllmLM

        return NanovllmLM(llm=make_llm(case, **dict(engine)), **options)

    return make


@pytest.fixture
def instances():
    """Turns arguments into the harness's requests: instances(KIND, arguments, ...)."""

    def make(kind, *arguments):
        from lm_eval.api.instance import Instance

        return [
            Instance(kind, doc={}, arguments=one, idx=0, metadata=("task", i, 1)) for i, one in enumerate(arguments)
        ]

    return make
