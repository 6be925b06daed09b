"""Requests of given ids and settings, run together."""

from nanovllm import Request, SamplingParams


def run_together(llm, prompts, settings):
    """Give the output of each request, greedy and of 12 tokens unless its settings say otherwise."""
    params = [SamplingParams(**{"temperature": 0, "max_tokens": 12, "ignore_eos": True, **one}) for one in settings]
    requests = [
        Request({"prompt_token_ids": ids}, one, str(i))
        for i, (ids, one) in enumerate(zip(prompts, params, strict=True))
    ]
    outputs = {output.request_id: output for output in llm.generate_iter(requests)}
    return [outputs[str(i)] for i in range(len(requests))]
