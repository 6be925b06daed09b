"""A stand-in for `nanovllm.LLM` that answers at once, in an order of its own, and needs no weights.

Its tokenizer gives one id for each character. A completion is the last three prompt ids, reversed, as text.
"""

import hashlib

from nanovllm import CompletionOutput, RequestError, RequestOutput, SamplingParams


class FakeTokenizer:
    bos_token_id = 1
    sha256 = "5" * 64
    chat_template_sha256 = "6" * 64

    def __init__(self, has_chat_template=True):
        self.has_chat_template = has_chat_template

    def compile_chat_templates(self):
        pass

    def encode(self, text):
        return [1, *map(ord, text)]

    def encode_chat(self, messages, tools=None, add_generation_prompt=True):
        if any(message["role"] == "forbidden" for message in messages):
            raise RequestError("template_error", "roles must alternate")
        text = "".join(f"<{message['role']}>{message['content']}" for message in messages)
        if tools is not None:
            text = f"<tools {len(tools)}>" + text
        return text, [1, *map(ord, text)]


class FakeLLM:
    """Holds `window` requests and gives them back last in, first out."""

    def __init__(self, max_model_len=1000, window=4, has_chat_template=True, model_defaults=None, on_output=None):
        self.tokenizer = FakeTokenizer(has_chat_template)
        self.max_model_len = max_model_len
        self.window = window
        self.model_defaults = model_defaults or {}
        self.on_output = on_output or (lambda number: None)
        self.seen = []
        self.most_held = 0

    num_shareable_tokens = 4

    def default_sampling_params(self):
        return SamplingParams.from_dict(self.model_defaults)

    def facts(self):
        return {
            "model": {"path": "fake", "identity": "7" * 64},
            "tokenizer": {"sha256": self.tokenizer.sha256, "chat_template_sha256": None},
            "engine": {"dtype": "float32"},
            "kernels": "none",
            "cpu": {"model": "none"},
            "versions": {"nanovllm": "0"},
        }

    def stats(self):
        return {"running": 1, "waiting": 2, "prompt_tokens": 30, "completion_tokens": 40}

    def generate_iter(self, requests, window=None):
        held, number = [], 0
        for request in requests:
            held.append(request)
            self.most_held = max(self.most_held, len(held))
            if len(held) == self.window:
                self.on_output(number)
                number += 1
                yield self._answer(held.pop())
        while held:
            self.on_output(number)
            number += 1
            yield self._answer(held.pop())

    def generate_stream(self, prompt, sampling_params):
        yield from self._answer_text(self._ids(prompt))

    def top_logits(self, prompt, n):
        return [(7, 1.5, "seven"), (8, -0.25, "é\n")][:n]

    def _answer(self, request):
        ids = self._ids(request.prompt)
        params = request.sampling_params
        self.seen.append((request.request_id, "".join(map(chr, ids[1:])), params))
        if len(ids) >= self.max_model_len:
            message = f"the prompt has {len(ids)} tokens and max_model_len is {self.max_model_len}"
            error = RequestError("prompt_too_long", message)
            output = CompletionOutput(0, "", [], "error")
            return RequestOutput(request.request_id, None, ids, [output], error=error, data=request.data)
        text = self._answer_text(ids)
        seed = None if params.is_greedy else int(hashlib.sha256(request.request_id.encode()).hexdigest()[:4], 16)
        outputs = [CompletionOutput(i, text, list(map(ord, text)), "length", seed=seed) for i in range(params.n)]
        return RequestOutput(request.request_id, None, ids, outputs, num_cached_tokens=2, data=request.data)

    def _ids(self, prompt):
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt["prompt_token_ids"]

    def _answer_text(self, ids):
        return "".join(map(chr, reversed(ids[1:][-3:])))
