"""A folder with an evaluation in it, and a fake model that also tells how likely continuations are.

A continuation's log likelihood is looked up by its text without blanks; one that is not listed has minus the number of
its characters. After nothing, every continuation has -10. A text by itself has -2 for each of its characters.
"""

import io
import json
import os
import shutil
import signal

from fake_llm import FakeLLM, FakeTokenizer

from jobs.job_file import load_job
from jobs.run import run_job
from nanovllm import PerplexityOutput, RequestError, ScoredRequest, ScoreOutput


class EvalTokenizer(FakeTokenizer):
    adds_bos = True

    def starts_with_bos(self, text):
        return text.startswith("<")

    def encode_chat(self, messages, tools=None, add_generation_prompt=True, continue_final_message=False):
        text, ids = super().encode_chat(messages, tools)
        end = "" if continue_final_message else "<assistant>" if add_generation_prompt else ""
        return text + end, ids + list(map(ord, end))


class EvalLLM(FakeLLM):
    """Answers with the first of `answers` whose key is in the prompt's last line, else as FakeLLM does.

    An answer may be a list: then it has one text for each sample. `scored` lists what was scored.
    """

    def __init__(self, answers=None, likelihoods=None, **options):
        super().__init__(**options)
        self.tokenizer = EvalTokenizer()
        self.answers = answers or {}
        self.likelihoods = likelihoods or {}
        self.scored = []

    def _answer(self, request):
        output = super()._answer(request)
        last = "".join(map(chr, self._ids(request.prompt)[1:])).rsplit("\n\n", 1)[-1]
        for key, texts in self.answers.items():
            if output.error is None and key in last:
                for completion in output.outputs:
                    completion.text = texts if isinstance(texts, str) else texts[completion.index]
                break
        return output

    def score_iter(self, requests):
        held, number = [], 0
        for request in requests:
            held.append(request)
            if len(held) == self.window:
                self.on_output(number)
                number += 1
                yield self._score(held.pop())
        while held:
            self.on_output(number)
            number += 1
            yield self._score(held.pop())

    def _score(self, request):
        self.scored.append((request.prompt, request.continuations))
        if request.continuations is None:
            text = request.prompt
            if not text:
                return ScoredRequest(request, [], PerplexityOutput(error=RequestError("empty_prompt", "no token")))
            words = len(text.split())
            return ScoredRequest(request, [], PerplexityOutput([-2.0] * len(text), len(text.encode()), words))
        outputs = []
        for text in request.continuations:
            value = self.likelihoods.get(text.strip(), -len(text.strip())) if request.prompt else -10.0
            ids = list(map(ord, text))
            logprobs = [float(value)] + [0.0] * (len(ids) - 1)
            outputs.append(ScoreOutput(list(map(ord, str(request.prompt))) or [1], ids, logprobs, value > -2))
        return ScoredRequest(request, outputs)


class EvalShop:
    def __init__(self, folder):
        self.folder = folder
        self.out = folder / "run"
        self.said = ""

    def load(self, text, rows=(), output="run"):
        (self.folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (self.folder / "job.yaml").write_text(
            f"model: fake\ninput: in.jsonl\noutput: {output}\nprogress: none\n{text}", "utf-8"
        )
        return load_job(self.folder / "job.yaml")

    def run(self, text, rows, llm=None, output="run", again=False):
        """Run from nothing, or `again` on what is there. Gives the exit code."""
        if not again:
            shutil.rmtree(self.folder / output, ignore_errors=True)
        job = self.load(text, rows, output)
        stream = io.StringIO()
        try:
            return run_job(job, lambda job: llm or EvalLLM(), stream)
        finally:
            self.said = stream.getvalue()

    def interrupted(self, text, rows, after, **answers):
        """Run and be stopped when so many answers have come."""

        def stop(number):
            if number == after:
                os.kill(os.getpid(), signal.SIGTERM)

        assert self.run(text, rows, EvalLLM(window=2, on_output=stop, **answers)) == 143

    def bytes(self, name="scores.json", output="run"):
        return (self.folder / output / name).read_bytes()

    def lines(self, name="results.jsonl"):
        return [json.loads(line) for line in (self.out / name).read_text("utf-8").splitlines()]

    def scores(self):
        return json.loads((self.out / "scores.json").read_text("utf-8"))

    def values(self):
        return {name: metric["value"] for name, metric in self.scores()["metrics"].items()}
