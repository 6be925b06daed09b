"""Completions under structured outputs, for their tests."""

from nanovllm import SamplingParams

PERSON = {
    "type": "object",
    "properties": {
        "née": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": -3, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["é", "😀", None, 1.5]}, "minItems": 1, "maxItems": 3},
        "more": {"$ref": "#/$defs/more"},
    },
    "required": ["née", "age", "tags"],
    "additionalProperties": False,
    "$defs": {"more": {"anyOf": [{"type": "boolean"}, {"type": "string", "pattern": "^[a-c]{2,4}$"}]}},
}


def checked(make_llm):
    """Give a model, and see afterwards that no request and no block was left behind."""
    made = make_llm()
    yield made
    assert not made.engine.has_unfinished, "a request was left behind"
    made.engine.block_manager.check([])


def run(llm, structured, prompt="Hello", **settings):
    params = SamplingParams(**{"max_tokens": 100, "temperature": 0, "structured_outputs": structured, **settings})
    return llm.generate([prompt], params, use_tqdm=False)[0]


def complete(llm, structured, prompt="Hello", **settings):
    output = run(llm, structured, prompt, **settings)
    assert output.error is None, output.error
    return output.outputs[0]


def refused(llm, structured, **settings):
    output = run(llm, structured, **settings)
    assert output.outputs[0].finish_reason == "error" and output.outputs[0].text == ""
    return output.error
