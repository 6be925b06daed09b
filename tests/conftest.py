"""What every suite shares: where the oracle's checkpoints are, and small engines and models made from them."""

import json
import shutil
from pathlib import Path

import hypothesis
import pytest

MODELS = Path(__file__).parent / "golden" / "models"

# The same examples in every run, and no verdict on time: a shared machine may be slow.
hypothesis.settings.register_profile(
    "nanovllm", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("nanovllm")


def pytest_generate_tests(metafunc):
    """Run what asks for `level` at every instruction-set level of this machine."""
    if "level" in metafunc.fixturenames:
        from nanovllm.kernels import isa

        metafunc.parametrize("level", isa.testable_levels(), indirect=True)


@pytest.fixture
def level(request):
    """Switch the kernels to one level; its name."""
    from nanovllm.kernels import isa

    before = isa.active_level()
    isa.use_level(request.param)
    yield request.param
    isa.use_level(before)


@pytest.fixture(scope="session")
def models_dir():
    """Folder of the tiny golden checkpoints."""
    return MODELS


@pytest.fixture
def make_engine():
    """Factory of a token-level engine, float32 unless told otherwise: make_engine(CASE, **settings)."""

    def make(case, **settings):
        from nanovllm.config import EngineConfig
        from nanovllm.engine.llm_engine import load_engine

        return load_engine(MODELS / case, EngineConfig.from_dict({"dtype": "float32", **settings}))[0]

    return make


@pytest.fixture
def make_llm():
    """Factory of an LLM: make_llm(CASE or folder, **settings); float32, one thread, a small cache by default."""

    def make(case="llama-f32", **settings):
        from nanovllm import LLM

        defaults = {"dtype": "float32", "threads": 1, "max_model_len": 200, "max_num_seqs": 16}
        return LLM(MODELS / case, **{**defaults, **settings})

    return make


@pytest.fixture
def edited_model(tmp_path):
    """Factory of a copy of a checkpoint with JSON keys replaced; a file's value None removes the file, `...` a key."""

    def make(case, **files):
        folder = tmp_path / f"{case}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(MODELS / case, folder, ignore=shutil.ignore_patterns("expected.*"))
        for stem, changes in files.items():
            path = folder / f"{stem}.json"
            if changes is None:
                path.unlink()
                continue
            content = json.loads(path.read_text(encoding="utf-8")) | changes
            content = {key: value for key, value in content.items() if value is not ...}
            path.write_text(json.dumps(content), encoding="utf-8")
        return folder

    return make
