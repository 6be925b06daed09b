"""YAML as its authors mean it, with the line of every value.

YAML 1.2's idea of plain scalars: only `true` and `false` are truth values, dates stay text, `1e-1` is a number, a
number with a leading zero stays text (some readers take it as octal, others as decimal). Keys are text. A key given
twice, an alias, or a tag is refused: nothing in a file may mean two things, grow, or run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

_BOOL, _INT, _FLOAT, _NULL, _STR = (f"tag:yaml.org,2002:{name}" for name in ("bool", "int", "float", "null", "str"))

# Integers above this are not written with an exponent by anybody who means an integer.
_LARGEST_EXACT_FLOAT = 2**53


class YamlProblem(ValueError):
    """A text is not YAML, or is YAML that is refused here.

    Attributes:
        reason: what is wrong and the cure, as a sentence without the place.
        line: physical line, from 1; None when unknown.
    """

    def __init__(self, reason: str, line: int | None):
        super().__init__(reason)
        self.reason = reason
        self.line = line


class _Loader(yaml.SafeLoader):
    """Composes nodes; resolves plain scalars by the table below and refuses aliases."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own way to replace the inherited table)

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise YamlProblem(f"the alias *{event.anchor} is not read here: write the value out", _line(event))
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(_NULL, re.compile(r"^(?:null|Null|NULL|~|)$"), [*"nN~", ""])
_Loader.add_implicit_resolver(_BOOL, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    _INT, re.compile(r"^(?:[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
)
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(
        r"^(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)\.[0-9]*|(?:0|[1-9][0-9]*)(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def parse(text: str) -> tuple[Any, dict[tuple, int]]:
    """Read a text that is one YAML document.

    Returns:
        The value, and the line of each value in it by its path (a tuple of keys and list positions).

    Raises:
        YamlProblem: with the line.
    """
    nodes = list(_compose(text))
    if len(nodes) > 1:
        raise YamlProblem("one document is expected, and here a second begins", _line(nodes[1]))
    lines: dict[tuple, int] = {}
    value = _convert(nodes[0], (), lines) if nodes else None
    return value, lines


def parse_items(text: str) -> Iterator[tuple[int, Any]]:
    """Read the items of a list, or of several documents: (line, value or YamlProblem) each.

    Raises:
        YamlProblem: when the text as a whole cannot be read.
    """
    nodes = list(_compose(text))
    if len(nodes) == 1 and isinstance(nodes[0], yaml.SequenceNode):
        nodes = nodes[0].value
    for node in nodes:
        try:
            yield _line(node), _convert(node, (), {})
        except YamlProblem as problem:
            yield _line(node), problem


def parse_scalar(text: str) -> Any:
    """Read the value of a command-line setting, such as `0.7`, `[a, b]` or `auto`. Raises YamlProblem."""
    return parse(text)[0]


def _compose(text: str) -> list[yaml.Node]:
    loader = None
    nodes = []
    try:
        loader = _Loader(text)  # the reader refuses control characters at once
        while loader.check_node():
            nodes.append(loader.get_node())
    except yaml.MarkedYAMLError as error:
        raise YamlProblem(_explain(error), error.problem_mark.line + 1 if error.problem_mark else None) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlProblem(f"the character U+{error.character:04X} is not allowed in YAML", line) from None
    except RecursionError:
        raise YamlProblem("lists and mappings are nested too deeply", None) from None
    finally:
        if loader is not None:
            loader.dispose()
    return nodes


def _explain(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "the text is not YAML"
    if "'\\t'" in problem:
        return "a tab stands where YAML takes only spaces: indent with spaces"
    context = f" {error.context}" if error.context else ""
    return f"this is not YAML{context}: {problem}"


def _line(node: Any) -> int:
    return node.start_mark.line + 1


def _convert(node: yaml.Node, path: tuple, lines: dict[tuple, int]) -> Any:
    lines[path] = _line(node)
    if isinstance(node, yaml.MappingNode) and node.tag == "tag:yaml.org,2002:map":
        return _convert_mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return [_convert(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _convert_scalar(node)
    raise YamlProblem(f"the tag {node.tag} is not read here: write plain values", _line(node))


def _convert_mapping(node: yaml.MappingNode, path: tuple, lines: dict[tuple, int]) -> dict[str, Any]:
    result = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlProblem("a key must be plain text", _line(key_node))
        key = key_node.value
        if key in result:
            first = lines[(*path, key)]
            raise YamlProblem(f"the key {key!r} is given twice, first in line {first}: keep one", _line(key_node))
        result[key] = _convert(value_node, (*path, key), lines)
        lines[(*path, key)] = _line(key_node)
    return result


def _convert_scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    try:
        if node.tag == _STR:
            return text
        if node.tag == _NULL:
            return None
        if node.tag == _BOOL:
            return {"true": True, "false": False}[text.lower()]
        if node.tag == _INT:
            return int(text, 0)
        if node.tag == _FLOAT:
            return _number(text)
    except (ValueError, KeyError):
        raise YamlProblem(f"{text[:40]!r} is not a number that can be read", _line(node)) from None
    raise YamlProblem(f"the tag {node.tag} is not read here: write plain values", _line(node))


def _number(text: str) -> int | float:
    value = float(text)  # .inf and .nan are refused here: no setting and no row can hold them
    if not math.isfinite(value):
        raise ValueError(text)
    if "." not in text and value.is_integer() and abs(value) <= _LARGEST_EXACT_FLOAT:
        return int(value)  # 1e2 is meant as 100 where a count is wanted, and is as good where a float is
    return value
