"""Lines of OpenAI batches for tests, and a way to run them with a fake model."""

import io
import json

from fake_llm import FakeLLM

from jobs.job_file import load_job
from jobs.run import run_job

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def chat(custom_id="a", content="hi", **body):
    messages = [{"role": "user", "content": content}]
    return line(custom_id, CHAT, {"messages": messages, **body})


def completion(custom_id="a", prompt="hi", **body):
    return line(custom_id, COMPLETIONS, {"prompt": prompt, **body})


def line(custom_id, url, body):
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def run_lines(folder, rows, text="", llm=None):
    """Run rows, values or raw text, as a job; gives (exit code, result lines, manifest, the model)."""
    llm = llm or FakeLLM()
    if not isinstance(rows, bytes):
        rows = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()
    (folder / "in.jsonl").write_bytes(rows)
    (folder / "job.yaml").write_text(f"model: fake\ninput: in.jsonl\noutput: run\nprogress: none\n{text}", "utf-8")
    stderr = io.StringIO()
    code = run_job(load_job(folder / "job.yaml"), lambda job: llm, stderr)
    lines = [json.loads(one) for one in (folder / "run" / "results.jsonl").read_text("utf-8").split("\n")[:-1]]
    return code, lines, json.loads((folder / "run" / "manifest.json").read_text("utf-8")), llm
