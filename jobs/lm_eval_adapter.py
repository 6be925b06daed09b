"""nanovllm as a model of lm-evaluation-harness, registered there as "nanovllm".

Owns how the harness's three kinds of requests become requests of `LLM`: all at once, so that they share batches and
contexts, and back in their order. The harness's own command line knows the model with

    python -m jobs.lm_eval_adapter run --model nanovllm --model_args pretrained=DIR --tasks NAME --include_path DIR

Needs the extra `lm-eval`; nothing else imports this module before the harness is asked for.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from jobs.lm_eval_generation import GenerationSettings
from nanovllm import LLM, ConfigError, Request, RequestError, RequestOutput, ScoreRequest

# A child of the harness's logger: it follows the harness's level and format.
_log = logging.getLogger("lm_eval.models.nanovllm")


@register_model("nanovllm")
class NanovllmLM(LM):
    """A model of lm-evaluation-harness that runs on nanovllm.

    Contexts that are too long lose tokens at their beginning, as in the harness's `hf` model; `num_truncated` counts
    them, and a warning says so.

    Args:
        pretrained: a Hugging Face directory or hub id.
        llm: an `LLM` to use instead.
        tokenizer: another directory for the tokenizer.
        max_length: longest prompt plus completion; the engine's `max_model_len` by the harness's name.
        max_gen_toks: tokens to generate where a task gives no number.
        think_end_token: text or id of the token that ends the thinking; an answer is what comes after the last one.
        enable_thinking: the chat template's variable of that name. chat_template_args: more of its variables.
        batch_size, max_batch_size, device: what the harness passes to every model; the engine needs none of them.
        **settings: the fields of `EngineConfig`.

    Raises:
        UsageError: the model or a setting cannot be used.
    """

    def __init__(
        self, pretrained: str | None = None, *, llm: LLM | None = None, tokenizer: str | None = None,
        max_length: int | None = None, max_gen_toks: int = 256, think_end_token: str | int | None = None,
        enable_thinking: bool | None = None, chat_template_args: Mapping[str, Any] | None = None,
        batch_size: Any = None, max_batch_size: Any = None, device: Any = None, **settings: Any,
    ):  # fmt: skip
        super().__init__()
        if llm is None:
            if pretrained is None:
                raise ConfigError("model_args: expected pretrained=DIR, the model's directory")
            if max_length is not None:
                settings["max_model_len"] = max_length
            llm = LLM(str(pretrained), tokenizer=tokenizer, **settings)
        self._llm = llm
        self.tokenizer = llm.get_tokenizer()
        self.max_gen_toks = max_gen_toks
        self.num_truncated = 0
        self._think_end = think_end_token
        self._enable_thinking = enable_thinking
        self._template_name: str | None = None
        self._template_variables = dict(chat_template_args or {})
        if enable_thinking is not None:
            self._template_variables["enable_thinking"] = enable_thinking

    @property
    def max_length(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self._llm.max_model_len

    @property
    def eot_token_id(self) -> int | None:
        """The id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int | None:
        """The id that stands before a text: BOS, else EOS."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of rendered requests is kept under."""
        return f"{self._llm.model_dir.name}__{self.tokenizer.sha256[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the template that a run is to be rendered with, for its files; a name chooses it from here on."""
        if not chat_template:
            return None
        self._template_name = chat_template if isinstance(chat_template, str) else None
        return self.tokenizer.chat_template_text(self._template_name)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return a conversation as prompt text; without a new turn for the assistant the last message stays open."""
        options = {
            **self._template_variables,
            "chat_template": self._template_name,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
        }
        try:
            return self.tokenizer.render_chat(chat_history, **options)
        except RequestError as error:
            others = [message for message in chat_history if message["role"] != "system"]
            if error.code != "template_error" or len(others) == len(chat_history):
                raise
            _log.warning("The chat template refuses the conversation (%s); its system message is left out.", error)
            return self.tokenizer.render_chat(others, **options)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness's result file says about the model."""
        facts = self._llm.facts()
        return {
            "model_num_parameters": facts["model"]["parameters"],
            "model_dtype": facts["engine"]["dtype"],
            "model_sha": facts["model"]["identity"],
            "nanovllm": {"version": facts["versions"]["nanovllm"], "kernels": facts["kernels"], **facts["engine"]},
        }

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log probability and whether it is the greedy continuation."""
        if self._enable_thinking:
            raise ConfigError("enable_thinking: a task of log likelihoods leaves no room to think; take it out")
        groups: dict[str, dict[str, list[int]]] = {}
        for i, request in enumerate(requests):
            context, continuation = request.args
            groups.setdefault(context, {}).setdefault(continuation, []).append(i)
        batch = _Batch(self, "loglikelihood", requests, disable_tqdm)
        for scored in self._llm.score_iter(
            ScoreRequest(context, list(group), list(group.values()), truncate=True) for context, group in groups.items()
        ):
            for output, places in zip(scored.outputs, scored.request.data, strict=True):
                for i in places:
                    batch.truncated(output.num_truncated)
                    batch.settle(i, (output.logprob, bool(output.is_greedy)), output.error)
        return batch.finished()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log probability of each whole text, in windows of full context after BOS (EOS without BOS)."""
        batch = _Batch(self, "loglikelihood_rolling", requests, disable_tqdm)
        for scored in self._llm.score_iter(self._texts(requests)):
            empty = scored.perplexity.error is not None and scored.perplexity.error.code == "empty_prompt"
            batch.settle(scored.request.data, scored.perplexity.logprob, None if empty else scored.perplexity.error)
        return batch.finished()

    def _texts(self, requests: list[Instance]) -> Iterator[ScoreRequest]:
        for i, request in enumerate(requests):
            # The harness scores the BOS that a tokenizer puts first too; so that sums are the same, it stays.
            prompt = self._encoded(request.args[0])
            yield ScoreRequest(
                prompt if isinstance(prompt, RequestError) else self._prefix() + prompt, None, i, score_first=False
            )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return for each (context, settings) the generated text, up to the first of its stops."""
        batch = _Batch(self, "generate_until", requests, disable_tqdm)
        for output in self._llm.generate_iter(self._prompts(requests, batch)):
            i, settings = output.data
            batch.settle(i, "" if output.error else self._answer(output, settings), output.error)
        return batch.finished()

    def _prompts(self, requests: list[Instance], batch: _Batch) -> Iterator[Request]:
        seen: Counter[str] = Counter()
        for i, request in enumerate(requests):
            context, gen_kwargs = request.args
            settings = GenerationSettings.read(gen_kwargs, self.max_gen_toks, self.tokenizer.eos_token)
            room = self.max_length - settings.params.max_tokens
            if room < 1:
                raise ConfigError(
                    f"max_gen_toks: {settings.params.max_tokens} tokens to generate leave no room for a prompt in the "
                    f"model's {self.max_length} (max_length); give fewer"
                )
            prompt = self._encoded(context)
            if not isinstance(prompt, RequestError):
                ids = prompt or self._prefix()
                batch.truncated(max(0, len(ids) - room))
                prompt = {"prompt": context, "prompt_token_ids": ids[-room:]}
            # By this name a sampled request has its own random numbers, wherever it stands and whatever runs beside it.
            key = hashlib.sha256(context.encode("utf-8", "surrogatepass")).hexdigest()[:32]
            seen[key] += 1
            yield Request(prompt, settings.params, f"{key}-{seen[key]}", data=(i, settings))

    def _answer(self, output: RequestOutput, settings: GenerationSettings) -> str:
        completion = output.outputs[0]
        if not isinstance(self._think_end, int):
            return settings.finished(completion.text, self._think_end)
        ids = completion.token_ids
        if self._think_end not in ids:
            return settings.finished(completion.text.lstrip())
        begin = len(ids) - ids[::-1].index(self._think_end)
        return settings.finished(self.tokenizer.decode(ids[begin:]).lstrip())

    def _encoded(self, text: str) -> list[int] | RequestError:
        try:
            return self.tokenizer.encode(text)
        except RequestError as error:
            return error

    def _prefix(self) -> list[int]:
        if self.prefix_token_id is None:
            raise ConfigError("the tokenizer has neither BOS nor EOS to stand before a text; give another tokenizer")
        return [self.prefix_token_id]


class _Batch:
    """The requests of one call and what has become of them.

    The harness has no place for the error of a single request: the others are computed first, and go to its cache.
    """

    def __init__(self, lm: NanovllmLM, kind: str, requests: Sequence[Instance], disable_tqdm: bool):
        self._lm, self._kind, self._requests = lm, kind, requests
        self._results: list[Any] = [None] * len(requests)
        self._errors: dict[int, RequestError] = {}
        self._num_truncated = self._num_lost = 0
        self._bar = tqdm(total=len(requests), desc=f"Running {kind} requests", disable=disable_tqdm)

    def truncated(self, num_tokens: int) -> None:
        """Count the tokens that a request has lost."""
        self._num_truncated += num_tokens > 0
        self._num_lost += num_tokens

    def settle(self, index: int, result: Any, error: RequestError | None) -> None:
        """Take a request's result or its error."""
        if error is None:
            self._results[index] = result
            self._lm.cache_hook.add_partial(self._kind, self._requests[index].args, result)
        else:
            self._errors[index] = error
        self._bar.update()

    def finished(self) -> list[Any]:
        """Return the results in the order of the requests.

        Raises:
            RequestError: at least one of them has failed.
        """
        self._bar.close()
        self._lm.num_truncated += self._num_truncated
        if self._num_truncated:
            _log.warning(
                "%d of %d contexts did not fit into max_length %d and lost %d tokens at their beginning.",
                self._num_truncated, len(self._requests), self._lm.max_length, self._num_lost,
            )  # fmt: skip
        if self._errors:
            first = min(self._errors)
            error, task = self._errors[first], self._requests[first].task_name
            raise RequestError(
                error.code,
                f"{len(self._errors)} of {len(self._requests)} {self._kind} requests failed, the first of them "
                f"number {first} (task {task}): {error}",
            )
        return self._results


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
