"""LLM: the one place where tokenizer and engine meet.

Prompts become token ids on the way in; tokens become text, stop strings and `RequestOutput`s on the way out. Several
iterators may run on one LLM at once: every step serves them all, and each gets its own results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from nanovllm.beam import BeamSettings, beam_search
from nanovllm.checkpoint.hub import resolve_model
from nanovllm.config import EngineConfig
from nanovllm.dispatcher import Dispatcher
from nanovllm.engine.llm_engine import load_engine
from nanovllm.errors import ConfigError, RequestError
from nanovllm.in_flight import failure_of
from nanovllm.outputs import PerplexityOutput, Request, RequestOutput, ScoredRequest, ScoreOutput, ScoreRequest
from nanovllm.progress import progress
from nanovllm.prompts import as_conversations, as_prompt_list, per_prompt, read_prompt
from nanovllm.sampling_params import SamplingParams
from nanovllm.scoring import score_requests, serve_scores
from nanovllm.token_rules import RuleMaker
from nanovllm.tokenizer import Tokenizer


class LLM:
    """A model that answers prompts.

    Args:
        model: a Hugging Face directory, or a hub id such as "org/name" or "org/name@revision".
        tokenizer: another directory for the tokenizer; default is the model's.
        **settings: the fields of `EngineConfig`.

    Raises:
        UsageError: the model or a setting cannot be used; the message says why and what to do.
    """

    def __init__(self, model, *, tokenizer=None, load_progress=None, **settings):
        self.config = EngineConfig.from_dict(settings)
        self.model_dir = resolve_model(model)
        self.tokenizer = Tokenizer.from_pretrained(
            self.model_dir if tokenizer is None else resolve_model(tokenizer), self.config.chat_template
        )
        self._defaults: SamplingParams | None = None
        self.engine, self.model_identity = load_engine(self.model_dir, self.config, load_progress)
        self._rules = RuleMaker(self.tokenizer, self.engine.spec.vocab_size)
        self.dispatcher = Dispatcher(
            self.engine, self.tokenizer, self._rules, self.default_sampling_params, self.config.seed
        )
        self.default_sampling_params()  # so that an impossible default is said now and not at the first prompt

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus completion, in tokens."""
        return self.engine.limits.max_model_len

    @property
    def num_shareable_tokens(self) -> int:
        """Tokens that prompts share at once in the prefix cache, a block; 0 without prefix caching."""
        return self.engine.block_manager.block_size if self.config.enable_prefix_caching else 0

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer."""
        return self.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """Return the built-in defaults with those of generation_config.json on top (unless switched off)."""
        if self._defaults is None:
            self._defaults = SamplingParams()
            if self.config.generation_config == "auto":
                self._defaults = self._model_defaults()
        return self._defaults.clone()

    def _model_defaults(self) -> SamplingParams:
        try:
            return SamplingParams.from_dict(self.engine.spec.generation_defaults)
        except ConfigError as error:
            raise ConfigError(
                f"{self.model_dir / 'generation_config.json'}: {error}; mend the file, or ignore it with "
                f'generation_config: "none"'
            ) from None

    get_default_sampling_params = default_sampling_params

    def generate(self, prompts, sampling_params=None, use_tqdm: bool = True) -> list[RequestOutput]:
        """Complete prompts; results come in the order of the prompts.

        Args:
            prompts: one prompt or a list: str, {"prompt": str}, {"prompt_token_ids": [int]} or a list of ints.
            sampling_params: one `SamplingParams` for all, a list with one each, or None for the model's defaults.
            use_tqdm: show a progress bar on stderr.

        Returns:
            One `RequestOutput` for each prompt. A prompt that cannot be served has `error` set and finish_reason
            "error"; the others are not affected.
        """
        prompts = as_prompt_list(prompts)
        params = per_prompt(sampling_params, len(prompts))
        requests = (Request(p, s, str(i), data=i) for i, (p, s) in enumerate(zip(prompts, params, strict=True)))
        return self._collect(requests, len(prompts), use_tqdm)

    def chat(
        self, messages, sampling_params=None, use_tqdm: bool = True, *, chat_template=None, tools=None,
        add_generation_prompt: bool = True, continue_final_message: bool = False, chat_template_kwargs=None,
    ) -> list[RequestOutput]:  # fmt: skip
        """Answer one conversation or a list of them, rendered by the model's chat template.

        Args:
            messages: a list of {"role": str, "content": str}, or a list of such lists.
            sampling_params: as in `generate`.
            use_tqdm: show a progress bar on stderr.
            chat_template: name or text of another template.
            tools: JSON schemas for the template.
            add_generation_prompt: end with the header of the assistant's turn.
            continue_final_message: leave the last message open, to be continued.
            chat_template_kwargs: more variables for the template.
        """
        conversations = as_conversations(messages)
        params = per_prompt(sampling_params, len(conversations))
        options = dict(
            chat_template_kwargs or {}, tools=tools, chat_template=chat_template,
            add_generation_prompt=add_generation_prompt, continue_final_message=continue_final_message,
        )  # fmt: skip

        def render() -> Iterator[Request]:
            for i, (conversation, one) in enumerate(zip(conversations, params, strict=True)):
                try:
                    text, ids = self.tokenizer.encode_chat(conversation, **options)
                    prompt = {"prompt": text, "prompt_token_ids": ids}
                except RequestError as error:
                    prompt = error
                yield Request(prompt, one, str(i), data=i)

        return self._collect(render(), len(conversations), use_tqdm)

    def _collect(self, requests: Iterable[Request], total: int, use_tqdm: bool) -> list[RequestOutput]:
        results: list[Any] = [None] * total
        with progress(total, use_tqdm) as done:
            for output in self.generate_iter(requests):
                results[output.data] = output
                output.data = None
                done()
        return results

    def generate_iter(self, requests: Iterable[Request | None], window: int | None = None) -> Iterator[RequestOutput]:
        """Serve requests as they come and yield each result as it finishes, in any order.

        Requests may be added while others run: the source is asked again after every step, and None says that it has
        nothing at the moment. While nothing is in flight it is asked without a pause, so it may block then.

            todo = [Request("Once upon a time", params, "1")]

            def source():
                while len(served) < 3:
                    yield todo.pop() if todo else None

            served = []
            for output in llm.generate_iter(source()):
                served.append(output)
                todo.append(Request(output.prompt + output.outputs[0].text, params, f"{len(served) + 1}"))

        Closing the iterator ends all of its requests, `cancel` a single one. Equal requests that are in flight
        together, greedy or with the same seed of their own, are computed once, and each gets the result.

        Args:
            requests: pulled lazily, at most `window` ahead of the results; a prompt may also be a `RequestError`,
                which comes back as a refused request.
            window: most requests in flight; default is a few times max_num_seqs.

        Yields:
            RequestOutput; `request_id` and `data` are those of the request.
        """
        if window is not None and window < 1:
            raise ConfigError(f"window: expected at least 1 request in flight, found {window}")
        yield from self.dispatcher.serve(requests, window)

    def cancel(self, request_id: str) -> int:
        """End the requests in flight that have this id; returns how many there were.

        Each comes out of its iterator with finish_reason "abort" and what it has so far.
        """
        return self.dispatcher.cancel(request_id)

    def score(self, prompts, continuations, use_tqdm: bool = True) -> list[list[ScoreOutput]]:
        """Return how likely continuations are after prompts; no penalty, filter or temperature is ever applied.

        The continuations of a prompt share its keys and values, and all pairs run in common batches.

        Args:
            prompts: one prompt or a list, in the forms of `generate`. An empty one stands for BOS (EOS without BOS).
            continuations: for each prompt a list of texts or lists of token ids; for a single prompt that list alone.
            use_tqdm: show a progress bar on stderr.

        Returns:
            For each prompt the scores of its continuations. A pair that cannot be scored has `error` set. Two texts
            are encoded as one and cut at the number of tokens of the prompt alone, whose trailing blanks count as
            the continuation's: lm-eval's rule. Where a token spans the cut and nothing is left of the continuation,
            the cut is before that token.
        """
        return [one.outputs for one in self._score_all(score_requests(prompts, continuations), use_tqdm)]

    def perplexity(self, texts, *, score_first: bool = True, use_tqdm: bool = True) -> list[PerplexityOutput]:
        """Return how well the model predicts texts of any length, every token scored exactly once.

        A text longer than max_model_len rolls: each window scores the tokens after the ones before, the last with
        as much context as fits (lm-eval's windows).

        Args:
            texts: one text or a list: str or token ids.
            score_first: score the first token too, after BOS (EOS without BOS); else it is only context.
            use_tqdm: show a progress bar on stderr.
        """
        requests = [ScoreRequest(text, None, i, score_first) for i, text in enumerate(as_prompt_list(texts))]
        return [one.perplexity for one in self._score_all(requests, use_tqdm)]

    def _score_all(self, requests: list[ScoreRequest], use_tqdm: bool) -> list[ScoredRequest]:
        results: list[Any] = [None] * len(requests)
        with progress(len(requests), use_tqdm) as done:
            for scored in self.score_iter(requests):
                results[scored.request.data] = scored
                done()
        return results

    def score_iter(self, requests: Iterable[ScoreRequest | None]) -> Iterator[ScoredRequest]:
        """Score requests as they come and yield each as it finishes, in any order.

        Several iterators, of this kind and of `generate_iter`, may run on one LLM at once. What is scored, and how,
        is said at `score` for a request with continuations and at `perplexity` for one without.

        Args:
            requests: pulled lazily, a few times max_num_seqs ahead of the results; None says that there is none at
                the moment. A prompt may also be a `RequestError`, which comes back as the error of its outputs.

        Raises:
            ConfigError: a request's continuations are not a list.
        """
        return serve_scores(self, requests)

    def beam_search(
        self, prompts, width: int = 4, max_tokens: int = 16, length_penalty: float = 1.0,
        early_stopping: bool = False, *, ignore_eos: bool = False, use_tqdm: bool = True,
    ) -> list[RequestOutput]:  # fmt: skip
        """Return for each prompt the `width` best completions that a beam of that width finds, the best first.

        A completion's score is its cumulative_logprob divided by its number of tokens (the one that ended it
        included) to the power of length_penalty; sampling settings are not applied.

        Args:
            prompts: as in `generate`.
            width: beams of each prompt, at most 500.
            max_tokens: most tokens of a completion.
            length_penalty: above 0 favours long completions, below 0 short ones; -32 to 32.
            early_stopping: end as soon as `width` completions have ended; else only when no running beam has a
                better score than the worst of them.
            ignore_eos: go on past the model's end-of-sequence ids.
            use_tqdm: show a progress bar on stderr.
        """
        stop_ids = frozenset() if ignore_eos else frozenset(self.engine.spec.eos_token_ids)
        settings = BeamSettings(width, max_tokens, length_penalty, early_stopping, stop_ids)
        return beam_search(self, prompts, settings, use_tqdm)

    def generate_stream(self, prompt, sampling_params: SamplingParams | None = None) -> Iterator[str]:
        """Yield the text of one completion in pieces, as soon as each is certain.

        Raises:
            RequestError: the prompt cannot be served.
        """
        state = self.dispatcher.start(Request(prompt, sampling_params, "0"), deque(), shares=False)
        if isinstance(state, RequestOutput):
            raise state.error
        work = state.work
        try:
            while work.num_open:
                self.dispatcher.step()
                if piece := work.texts[0].take_new():
                    yield piece
            # Between two pieces another iterator's steps may have ended this completion.
            if piece := work.texts[0].take_new():
                yield piece
        finally:
            self.dispatcher.drop(state)
        if work.seqs[0].finish_reason == "error":
            raise failure_of(work.seqs)

    def top_logits(self, prompt, n: int) -> list[tuple[int, float, str]]:
        """Return the n best next tokens after a prompt: (id, logit, token), best first, lower ids first in a tie."""
        _, ids = read_prompt(prompt, self.tokenizer)
        logits = self.engine.next_token_logits(ids)
        best = np.argsort(-logits, kind="stable")[:n].tolist()
        return [(i, float(logits[i]), self.tokenizer.id_to_token(i) or "") for i in best]

    def stats(self) -> dict[str, int]:
        """Return counts since the model was loaded, and how many sequences run and wait now.

        computed_tokens are the rows of all forward passes; deduplicated are requests that got an equal one's result.
        """
        scheduler, totals = self.engine.scheduler, self.engine.stats
        return {
            "running": len(scheduler.running),
            "waiting": len(scheduler.waiting),
            "prompt_tokens": totals.prompt_tokens,
            "cached_tokens": totals.cached_tokens,
            "computed_tokens": totals.computed_tokens,
            "completion_tokens": totals.completion_tokens,
            "steps": totals.steps,
            "preemptions": scheduler.num_preemptions,
            "deduplicated": self.dispatcher.num_deduplicated,
        }

    def facts(self) -> dict[str, Any]:
        """Return what a reader needs to know to repeat a run: model, settings in force, kernels, machine, versions."""
        from nanovllm.info import engine_facts

        return engine_facts(self)
