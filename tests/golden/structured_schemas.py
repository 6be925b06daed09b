"""Thirty JSON schemas whose values are bounded in length, so that a few hundred tokens always suffice."""


def text(most=12, **more):
    return {"type": "string", "maxLength": most, **more}


def record(required=None, **properties):
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def whole(low, high):
    return {"type": "integer", "minimum": low, "maximum": high}


def items(one, least, most):
    return {"type": "array", "items": one, "minItems": least, "maxItems": most}


FLAG = {"type": "boolean"}

SCHEMAS = {
    "flat": record(name=text(), age=whole(0, 120)),
    "nested": record(person=record(name=record(first=text(8), last=text(8)), born=whole(1900, 2030)), alive=FLAG),
    "enum": record(mood={"enum": ["good", "mixed", "bad"]}, stars=whole(1, 5)),
    "enum of mixed types": record(value={"enum": [1, 2.5, None, True, "one", [1, 2], {"a": 1}]}),
    "const": record(version={"const": 3}, kind={"const": "é✓"}, size=whole(1, 9)),
    "array of enums": items({"enum": ["red", "green", "blue"]}, 2, 4),
    "array of records": items(record(x=whole(-9, 9), y=whole(-9, 9)), 1, 3),
    "matrix": items(items(whole(0, 9), 2, 2), 0, 3),
    "tuple": {"type": "array", "prefixItems": [text(6), whole(0, 9), FLAG], "items": False, "minItems": 3},
    "names in other scripts": record(**{"名前": text(6), "größe": whole(50, 250), "да/нет": FLAG}),
    "enum in other scripts": record(
        city={"enum": ["München", "東京", "Москва", "القاهرة", "São Paulo"]}, emoji={"enum": ["😀", "👍🏽"]}
    ),
    "names with quotes": record(**{'a "b"': whole(0, 9), "back\\slash": FLAG, "new\nline": {"type": "null"}}),
    "bounds below zero": record(low=whole(-1000, -10), around=whole(-7, 7), high=whole(1234, 5678)),
    "exclusive bounds": record(n={"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 20}),
    "multiples": record(n={"type": "integer", "minimum": 0, "maximum": 999, "multipleOf": 5}),
    "quarters": record(price={"type": "number", "minimum": 0, "maximum": 99, "multipleOf": 0.25}),
    "optional fields": record(["id"], id=whole(1, 99), note=text(10), tag={"enum": ["a", "b"]}, flag=FLAG),
    "all optional": record([], a=whole(0, 9), b=FLAG, c={"type": "null"}),
    "definitions": {
        **record(home={"$ref": "#/$defs/place"}, work={"$ref": "#/$defs/place"}),
        "$defs": {"place": record(town=text(10), zip={"$ref": "#/$defs/zip"}), "zip": text(5, pattern="^[0-9]{5}$")},
    },
    "definitions of draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        **record(one={"$ref": "#/definitions/n"}, two={"$ref": "#/definitions/n"}),
        "definitions": {"n": whole(0, 99)},
    },
    "any of": record(id={"anyOf": [whole(1, 999), text(8), {"type": "null"}]}),
    "any of records": {
        "anyOf": [
            record(kind={"const": "circle"}, r=whole(1, 9)), record(kind={"const": "box"}, w=whole(1, 9), h=whole(1, 9))
        ]
    },
    "list of types": record(value={"type": ["boolean", "null", "string"], "maxLength": 10}),
    "patterns": record(code=text(8, pattern="^[A-Z]{2}-[0-9]{3}$"), hex=text(6, pattern="^[0-9a-f]+$")),
    "lengths": record(short=text(3, minLength=3), long=text(20, minLength=10)),
    "formats": record(day={"type": "string", "format": "date"}, at={"type": "string", "format": "uuid"}),
    "all of": {
        "allOf": [
            record(["a"], a=whole(0, 9), b=FLAG),
            {"type": "object", "properties": {"a": whole(5, 20)}, "required": ["b"]},
        ],
    },
    "pattern properties": {
        "type": "object", "properties": {"n": whole(0, 9)}, "patternProperties": {"^x_": FLAG},
        "required": ["n", "x_a"], "additionalProperties": False, "maxProperties": 2,
    },
    "a bare string": text(15, minLength=1),
    "deep": record(a=record(b=record(c=record(d=record(e=record(f=items(whole(0, 3), 0, 3))))))),
}  # fmt: skip
