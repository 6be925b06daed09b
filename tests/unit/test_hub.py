"""Models named by directory or hub id; downloads against a small server that speaks the hub's protocol."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from nanovllm.checkpoint.hub import resolve_model
from nanovllm.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
LLAMA = ROOT / "tests/golden/models/llama-f32"
SHA = {"main": "0123456789abcdef0123456789abcdef01234567", "v1": "1" * 40}

CHECKPOINT = {
    path.name: path.read_bytes() for path in sorted(LLAMA.iterdir()) if path.suffix in {".json", ".safetensors"}
} | {"chat_template.jinja": b"{{ messages }}"}
UNWANTED = {
    "README.md": b"# tiny",
    "modeling_tiny.py": b"raise SystemExit",
    "pytorch_model.bin": b"\x80\x04.",
    "consolidated.safetensors": b"\0" * 16,
    "onnx/config.json": b"{}",
}
REPOS = {
    "tiny/llama": CHECKPOINT | UNWANTED,
    "tiny/pickled": {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."},
    "tiny/gated": CHECKPOINT,
}


class HubHandler(BaseHTTPRequestHandler):
    """Serves REPOS: repository info, tree listing, and files with the headers that a client relies on."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        self.server.requests.append((self.command, parts))
        if parts[:2] == ["api", "models"]:
            self.serve_api("/".join(parts[2:4]), parts[4:])
        elif parts[2:3] == ["resolve"]:
            self.serve_file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.answer(404, b"{}")

    def serve_api(self, repo, rest):
        kind, revision = rest[:2] or ("revision", "main")
        files = REPOS.get(repo)
        if repo == "tiny/forbidden":
            return self.answer(403, b"{}")
        if files is None:
            # The hub does not tell strangers which private repositories exist.
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        sha = SHA.get(revision, revision if revision in SHA.values() else None)
        if sha is None:
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if kind == "tree":
            body = [
                {"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            body = {"_id": "1", "id": repo, "modelId": repo, "sha": sha, "private": False, "siblings": siblings}
            body |= {"tags": [], "downloads": 0, "likes": 0}
        return self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def serve_file(self, repo, revision, name):
        if repo == "tiny/gated":
            return self.answer(401, b"{}", {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."})
        data = REPOS[repo].get(name)
        if data is None:
            return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        sha = SHA.get(revision, revision)
        return self.answer(200, data, {"ETag": f'"{etag(data)}"', "X-Repo-Commit": sha})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def etag(data):
    return hashlib.sha1(data).hexdigest()


class Hub:
    """A running server, and a client process with a cache of its own."""

    def __init__(self, cache):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
        self.server.daemon_threads = True
        self.server.requests = []
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.cache = cache
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()

    @property
    def fetched(self):
        return {"/".join(parts[4:]) for _, parts in self.server.requests if parts[2:3] == ["resolve"]}

    def resolve(self, model, **env):
        """Call resolve_model in a process of its own, since huggingface_hub reads its settings when it is imported."""
        code = (
            "import json, sys\n"
            "from nanovllm.checkpoint.hub import resolve_model\n"
            "from nanovllm.errors import UsageError\n"
            "try:\n    print(json.dumps(['ok', str(resolve_model(sys.argv[1]))]))\n"
            "except UsageError as error:\n    print(json.dumps(['error', str(error)]))\n"
        )
        inherited = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        proxies = {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        settings = {"HF_HOME": str(self.cache), "HF_ENDPOINT": self.endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code, model],
            env=inherited | proxies | settings | {"PYTHONPATH": str(ROOT)} | env,
            cwd=self.cache,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        self.stderr = done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def hub(tmp_path):
    pytest.importorskip("huggingface_hub")
    hub = Hub(tmp_path)
    yield hub
    hub.stop()


def test_hub_id_is_fetched_without_code_and_then_served_from_the_cache_offline(hub):
    kind, found = hub.resolve("tiny/llama")
    assert kind == "ok", found
    assert hub.fetched == set(CHECKPOINT)
    assert {path.name: path.read_bytes() for path in Path(found).iterdir()} == CHECKPOINT
    assert "Fetching" in hub.stderr  # the progress bar of huggingface_hub

    hub.stop()
    hub.server.requests.clear()
    assert hub.resolve("tiny/llama", HF_HUB_OFFLINE="1") == ["ok", found]
    assert hub.server.requests == []
    assert hub.resolve("tiny/llama") == ["ok", found]  # nobody answers, but the cache is complete


def test_revision_after_the_at_sign_is_the_one_fetched(hub):
    kind, found = hub.resolve("tiny/llama@v1")
    assert (kind, Path(found).name) == ("ok", SHA["v1"])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("tiny/absent", "hub model tiny/absent was not found at {endpoint}, nor is it a directory: check the spelling"),
        (
            "tiny/llama@v9",
            "hub model tiny/llama has no revision v9; its branches and tags are at {endpoint}/tiny/llama",
        ),
        ("tiny/gated", "hub model tiny/gated is gated: accept its conditions at {endpoint}/tiny/gated"),
        ("tiny/pickled", "hub model tiny/pickled has no safetensors weights; pickled ones are not read"),
    ],
)
def test_hub_refusals_are_one_sentence_with_a_cure(hub, model, expected):
    kind, message = hub.resolve(model)
    assert kind == "error"
    assert message.startswith(expected.format(endpoint=hub.endpoint))
    assert "\n" not in message


def test_refused_access_names_the_token(hub):
    kind, message = hub.resolve("tiny/forbidden")
    assert kind == "error"
    assert message.startswith(f"hub model tiny/forbidden: {hub.endpoint} refused access (403); log in with `hf auth")
    assert "\n" not in message


def test_offline_without_a_cached_copy_says_which_variable_forbids_the_network(hub):
    kind, message = hub.resolve("tiny/llama", HF_HUB_OFFLINE="1")
    assert kind == "error"
    assert message.startswith("hub model tiny/llama is not complete in the local cache and HF_HUB_OFFLINE forbids")
    assert hub.server.requests == []


def test_unreachable_hub_is_named(hub):
    hub.stop()
    kind, message = hub.resolve("tiny/llama")
    assert kind == "error"
    assert message.startswith(f"hub model tiny/llama could not be fetched from {hub.endpoint} (")
    assert "\n" not in message


@pytest.fixture
def no_network(monkeypatch):
    def forbidden(repo, revision):
        raise AssertionError(f"looked up {repo} {revision} on the hub")

    monkeypatch.setattr("nanovllm.checkpoint.hub._fetch", forbidden)


def test_directory_is_looked_up_beside_the_job_file_then_in_the_current_directory(tmp_path, monkeypatch, no_network):
    job, cwd = tmp_path / "job", tmp_path / "cwd"
    for directory in (job / "org/name", cwd / "org/name", cwd / "org/other"):
        directory.mkdir(parents=True)
    monkeypatch.chdir(cwd)
    assert resolve_model("org/name", relative_to=job) == job / "org/name"
    assert resolve_model("org/other", relative_to=job).resolve() == cwd / "org/other"
    assert resolve_model("org/name").resolve() == cwd / "org/name"
    assert resolve_model(str(job / "org/name"), relative_to=cwd) == job / "org/name"
    monkeypatch.setenv("HOME", str(job))
    assert resolve_model("~/org/name") == job / "org/name"


@pytest.mark.parametrize(
    "model",
    [
        *("", "./models/x", "../x", "/no/such/x", "~/x", "~nobody-here/x", "a/b/c", "models/x", "no-models", "a--b/c"),
        *("a/b.git", "a/..", "a\0b/c", "x" * 5000, "a/b@", "-a/b", "a/b c", "org/\N{DEGREE SIGN}"),
    ],
)
def test_what_looks_like_a_path_is_never_looked_up_on_the_hub(tmp_path, monkeypatch, no_network, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match="is not a directory"):
        resolve_model(model)


def test_sibling_directory_makes_a_name_a_path_unless_a_revision_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Qwen").mkdir()
    asked = []
    monkeypatch.setattr("nanovllm.checkpoint.hub._fetch", lambda *args: asked.append(args) or tmp_path)
    with pytest.raises(UsageError, match=r"write Qwen/Qwen3-0\.6B@main if you mean the model on the hub"):
        resolve_model("Qwen/Qwen3-0.6B")
    resolve_model("Qwen/Qwen3-0.6B@main")
    resolve_model("meta-llama/Llama-3.2-1B")
    resolve_model("meta-llama/Llama-3.2-1B", revision="v2")
    resolve_model("meta-llama/Llama-3.2-1B@refs/pr/7")
    assert asked == [
        ("Qwen/Qwen3-0.6B", "main"),
        ("meta-llama/Llama-3.2-1B", None),
        ("meta-llama/Llama-3.2-1B", "v2"),
        ("meta-llama/Llama-3.2-1B", "refs/pr/7"),
    ]


def test_two_different_revisions_are_refused(no_network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="names revision v1, but revision='v2' is given too"):
        resolve_model("org/name@v1", revision="v2")


@pytest.mark.parametrize("revision", ["-x", "../../x", "a..b", "a b", "x" * 300, "\ud800"])
def test_what_cannot_be_a_revision_is_refused(no_network, tmp_path, monkeypatch, revision):
    monkeypatch.chdir(tmp_path)
    for arguments in ({"model": f"org/name@{revision}"}, {"model": "org/name", "revision": revision}):
        with pytest.raises(
            UsageError, match=r"model org/name: .* cannot be a revision; expected a branch, tag or commit"
        ):
            resolve_model(**arguments)


def test_gguf_file_is_answered_with_the_command_that_converts_it(tmp_path, no_network):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"is a GGUF file; convert it first: nanovllm convert .*tiny\.gguf tiny"):
        resolve_model("tiny.gguf", relative_to=tmp_path)


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="pip install huggingface_hub"):
        resolve_model("org/name")
