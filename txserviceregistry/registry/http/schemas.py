"""
JSON Schema (2020-12): for requests from the rules that check them, for responses from the types of the API's JSON.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints, is_typeddict

from .rules import (
    AnyOf,
    AnyUUID,
    Choice,
    DeferredFields,
    Field,
    Flag,
    Items,
    MappingOf,
    Number,
    Rule,
    Text,
    TimeUUID,
    Words,
)

Schema: TypeAlias = dict[str, Any]


def ofRule(rule: Rule) -> Schema:
    """The values that a rule accepts in a body."""
    match rule:
        case Text():
            schema = {"type": "string"} if rule.pattern is None else ofPattern(rule.pattern)
            return {**schema, "minLength": rule.shortest, "maxLength": rule.longest}
        case Number():
            numbers = "|".join(_digits(rule.least, rule.greatest))
            # Exponents and other white space are accepted too; no pattern can compare a number with an exponent.
            return {"anyOf": [ofText(rule), ofPattern(rf" *\+?0*(?:{numbers})(?:\.0*)? *")]}
        case Items():
            return {"type": "array", "items": ofRule(rule.element), "minItems": rule.least, "maxItems": rule.most}
        case MappingOf():
            return {
                "type": "object",
                "propertyNames": ofRule(rule.key),
                "additionalProperties": ofRule(rule.value),
                "maxProperties": rule.most,
            }
        case TimeUUID() | AnyUUID():
            return ofPattern(rule.pattern)
        case Choice():
            return {"type": "string", "enum": list(rule.words)}
        case Words():
            word = f"(?:{'|'.join(re.escape(word) for word in rule.choice.words)})"
            return ofPattern(f"|all|{word}(?:,{word})*")
        case AnyOf():
            return {"anyOf": [ofRule(rule.first), ofRule(rule.second)]}
        case Flag():
            return {"type": "boolean"}
        case DeferredFields():
            return {"anyOf": [ofFields(rule.fields), ofFields(rule.others)]}
    raise TypeError(f"no schema for {rule!r}")


def ofText(rule: Rule) -> Schema:
    """The values that a rule accepts in a path or a query, where a number is written in digits, and in one way only."""
    if isinstance(rule, Number):
        return {"type": "integer", "minimum": rule.least, "maximum": rule.greatest}
    return ofRule(rule)


def ofFields(fields: Sequence[Field]) -> Schema:
    """An object with these fields; more of them are ignored."""
    schema: Schema = {"type": "object", "properties": {field.name: _ofField(field) for field in fields}}
    required = [field.name for field in fields if field.isRequired]
    if required:
        schema["required"] = required
    return schema


def ofPattern(pattern: str) -> Schema:
    """
    A text of which the whole matches.

    :param pattern: one that means the same to Python and to ECMAScript.
    """
    return {"type": "string", "pattern": f"^(?:{pattern})$"}


def ofType(hint: Any) -> Schema:
    """
    The values of a type: of a TypedDict or of what one is made of.

    :raises TypeError: for any other.
    """
    if hint in _TYPES:
        return dict(_TYPES[hint])
    if is_typeddict(hint):
        properties = {name: ofType(each) for name, each in get_type_hints(hint).items()}
        required = [name for name in properties if name in hint.__required_keys__]
        return {"type": "object", "properties": properties, "required": required}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is list:
        return {"type": "array", "items": ofType(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": ofType(arguments[1])}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin is types.UnionType:
        return {"type": [ofType(each)["type"] for each in arguments]}
    raise TypeError(f"no schema for {hint!r}")


def _digits(least: int, greatest: int) -> Iterator[str]:
    """Patterns that together match the numbers of a range; each matches 1, 10, 100, … of them."""
    while least <= greatest:
        size = 1
        while least and least % (size * 10) == 0 and least + size * 10 - 1 <= greatest:
            size *= 10
        yield f"{least // size}{'[0-9]' * (len(str(size)) - 1)}"
        least += size


_TYPES: Mapping[Any, Schema] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    Any: {},
}


def _ofField(field: Field) -> Schema:
    schema = ofRule(field.rule)
    if field.default is None:
        return schema
    default = field.default()
    default = list(default) if isinstance(default, tuple) else default
    return {**schema, "type": [schema["type"], "null"], "default": default}
