"""Settings that other tools have and `SamplingParams` has not, and what to do instead.

Leaf module: one table, for every place that refuses a name. It must not know where a name was found.
"""

from __future__ import annotations

_JSON, _REGEX, _CHOICE, _GRAMMAR = (
    "use structured_outputs: {json: ...}",
    "use structured_outputs: {regex: ...}",
    "use structured_outputs: {choice: [...]}",
    "use structured_outputs: {grammar: ...}",
)
_BEAMS = "only LLM.beam_search has it"
_STOP = "use stop, which takes one string or several"
_NO_CODE = (
    "no code of yours runs here; logit_bias, allowed_token_ids, bad_words and structured_outputs say what may come"
)

_INSTEAD = {
    "best_of": "ask for n completions and choose among them",
    "do_sample": "use temperature: 0 takes the likeliest token, anything above samples",
    "early_stopping": _BEAMS,
    "eos_token_id": "use stop_token_ids; the model's own end the text anyway",
    "force_words_ids": "use structured_outputs, which says what the text conforms to",
    "grammar": _GRAMMAR,
    "guided_choice": _CHOICE,
    "guided_decoding": "use structured_outputs, with one of json, regex, choice, grammar and json_object",
    "guided_grammar": _GRAMMAR,
    "guided_json": _JSON,
    "guided_regex": _REGEX,
    "json_schema": _JSON,
    "length_penalty": _BEAMS,
    "logits_processors": _NO_CODE,
    "max_completion_tokens": "use max_tokens",
    "max_gen_toks": "use max_tokens",
    "max_length": "use max_tokens, which counts the completion alone",
    "max_new_tokens": "use max_tokens",
    "min_new_tokens": "use min_tokens",
    "n_predict": "use max_tokens",
    "n_probs": "use logprobs",
    "num_beam_groups": _BEAMS,
    "num_beams": _BEAMS,
    "num_predict": "use max_tokens",
    "num_return_sequences": "use n",
    "repeat_penalty": "use repetition_penalty",
    "response_format": "use structured_outputs: {json: ...} or {json_object: true}",
    "stop_sequences": _STOP,
    "stop_strings": _STOP,
    "stop_words": _STOP,
    "suppress_tokens": "use logit_bias or bad_words",
    "top_logprobs": "use logprobs, which is the number of them",
    "top_n": "use top_k for so many of the likeliest tokens, or top_n_sigma",
    "truncate_prompt_tokens": "on_overlong of a job says what is done with long prompts, and batch lines may have it",
    "typical": "use typical_p",
    "use_beam_search": _BEAMS,
}


def instead_of(name: object) -> str | None:
    """Say what to do instead of a setting that other tools have; None for names that are not known."""
    return _INSTEAD.get(name) if isinstance(name, str) else None
