"""Damage to values and texts, for tests that feed thousands of mutated inputs to a reader."""

import copy


def mutate_value(value, rng, replacements, new_keys):
    """Replace, remove, rename or add something somewhere inside; containers are changed in place.

    Args:
        value: of dicts, lists and scalars.
        rng: a `random.Random`.
        replacements: what a value may become.
        new_keys: the names that a dict may get.
    """
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[key + rng.choice("xs_ ")] = value.pop(key)
        elif kind == 2:
            value[rng.choice(new_keys)] = copy.deepcopy(rng.choice(replacements))
        else:
            value[key] = mutate_value(value[key], rng, replacements, new_keys)
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        place = rng.randrange(len(value))
        value[place] = mutate_value(value[place], rng, replacements, new_keys)
        return value
    return copy.deepcopy(rng.choice(replacements))


def mutate_text(text, rng, snippets):
    """Damage a str or bytes: cut it, insert a snippet, overwrite a character, or give a line twice."""
    place = rng.randrange(len(text) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return text[:place]
    if kind == 1:
        return text[:place] + rng.choice(snippets) + text[place:]
    if kind == 2:
        code = rng.randrange(256)
        return text[:place] + (chr(code) if isinstance(text, str) else bytes([code])) + text[place + 1 :]
    lines = text.splitlines(keepends=True)
    line = rng.randrange(max(1, len(lines)))
    return text[:0].join(lines[: line + 1] + lines[line:])
