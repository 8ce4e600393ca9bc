"""
JSON Schema (2020-12) for what comes in, made from the rules that check it, and for what goes out, made from the types
of the API's JSON.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints, is_typeddict

from .rules import AnyOf, Choice, DeferredFields, Field, Items, MappingOf, Number, Rule, Text, TimeUUID

Schema: TypeAlias = dict[str, Any]


def ofRule(rule: Rule) -> Schema:
    """What fits *rule* in a body."""
    return _MAKERS[type(rule)](rule)


def ofText(rule: Rule) -> Schema:
    """What fits *rule* in a path or a query, where all is text: a number is written in digits, and in one way only."""
    return _range(rule) if isinstance(rule, Number) else ofRule(rule)


def ofFields(fields: Sequence[Field]) -> Schema:
    """An object with these fields; more of them are ignored."""
    properties = {field.name: _ofField(field) for field in fields}
    required = [field.name for field in fields if field.isRequired]
    schema: Schema = {"type": "object", "properties": properties}
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
    return {
        **schema,
        "type": [schema["type"], "null"],
        "default": list(default) if isinstance(default, tuple) else default,
    }


def _ofText(rule: Text) -> Schema:
    schema = {"type": "string"} if rule.pattern is None else ofPattern(rule.pattern)
    return {**schema, "minLength": rule.shortest, "maxLength": rule.longest}


def _range(rule: Number) -> Schema:
    return {"type": "integer", "minimum": rule.least, "maximum": rule.greatest}


def _ofNumber(rule: Number) -> Schema:
    numbers = "|".join(str(number) for number in range(rule.least, rule.greatest + 1))
    # Exponents and other white space are accepted too; no pattern can tell the value of a number with an exponent.
    return {"anyOf": [_range(rule), ofPattern(rf" *\+?0*(?:{numbers})(?:\.0*)? *")]}


def _ofItems(rule: Items) -> Schema:
    return {"type": "array", "items": ofRule(rule.element), "minItems": rule.least, "maxItems": rule.most}


def _ofPairs(rule: MappingOf) -> Schema:
    return {
        "type": "object",
        "propertyNames": ofRule(rule.key),
        "additionalProperties": ofRule(rule.value),
        "maxProperties": rule.most,
    }


def _ofTimeUUID(rule: TimeUUID) -> Schema:
    return ofPattern(rule.pattern)


def _ofChoice(rule: Choice) -> Schema:
    return {"type": "string", "enum": list(rule.words)}


def _ofEither(rule: AnyOf) -> Schema:
    return {"anyOf": [ofRule(rule.first), ofRule(rule.second)]}


def _ofApart(rule: DeferredFields) -> Schema:
    return ofFields(rule.fields)


_MAKERS: Mapping[type[Any], Callable[[Any], Schema]] = {
    Text: _ofText,
    Number: _ofNumber,
    Items: _ofItems,
    MappingOf: _ofPairs,
    TimeUUID: _ofTimeUUID,
    Choice: _ofChoice,
    AnyOf: _ofEither,
    DeferredFields: _ofApart,
}
