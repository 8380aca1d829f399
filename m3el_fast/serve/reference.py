"""The OpenAPI schema as a page that needs nothing from elsewhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from html import escape
from typing import Any

Json = Mapping[str, Any]


def reference_page(schema: Json) -> str:
    """HTML of all operations and models of an OpenAPI schema."""
    operations = [
        _operation(path, method, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    models = [_model(name, model) for name, model in sorted(schema["components"]["schemas"].items())]
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<link rel="icon" href="data:,"><title>API of {title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="page.css">'
        f'</head><body><main class="reference"><h1>{title}</h1>{_text(schema["info"]["description"])}'
        '<p><a href="./">Try it</a> · <a href="openapi.json">openapi.json</a></p>'
        f"<h2>Addresses</h2>{''.join(operations)}<h2>Models</h2>{''.join(models)}</main></body></html>"
    )


def _operation(path: str, method: str, operation: Json) -> str:
    parts = [f"<h3><code>{method.upper()} {escape(path)}</code></h3>{_text(operation.get('description', ''))}"]
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<p>Body, <code>{escape(kind)}</code>: {_type(content['schema'])}</p>")
        if "properties" in content["schema"]:
            parts.append(_fields(content["schema"]))
    rows = []
    for status, answer in operation["responses"].items():
        kinds = [
            f"{escape(kind)}: {_type(content['schema'])}" if content.get("schema") else escape(kind)
            for kind, content in answer.get("content", {}).items()
        ]
        rows.append(
            f"<tr><th>{escape(status)}</th><td>{_line(answer['description'])}</td><td>{'; '.join(kinds)}</td></tr>"
        )
    return f"<section>{''.join(parts)}<div class=wide><table>{''.join(rows)}</table></div></section>"


def _model(name: str, model: Json) -> str:
    parts = [f'<section id="{escape(name)}"><h3>{escape(name)}</h3>{_text(model.get("description", ""))}']
    parts.append(_fields(model))
    for example in model.get("examples", []):
        parts.append(f"<p>Example:</p><pre>{escape(json.dumps(example, indent=2))}</pre>")
    return "".join(parts) + "</section>"


def _fields(model: Json) -> str:
    rows = []
    for name, field in model.get("properties", {}).items():
        needed = "" if name in model.get("required", []) else ", optional"
        about = _line(field.get("description", ""))
        rows.append(f"<tr><th>{escape(name)}</th><td>{_type(field)}{needed}</td><td>{about}</td></tr>")
    return f"<div class=wide><table>{''.join(rows)}</table></div>"


def _type(schema: Json) -> str:
    """A schema in a few words."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    limits = {"minimum": "at least", "minItems": "at least", "maximum": "at most", "maxItems": "at most"}
    limits |= {"maxLength": "characters at most"}
    bounds = "".join(f", {words} {schema[key]:,.0f}" for key, words in limits.items() if key in schema)
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}{bounds}"
    if schema.get("format") == "binary":
        return "file"
    return escape(str(schema.get("type", "anything"))) + bounds


def _text(markdown: str) -> str:
    """The paragraphs of a description."""
    return "".join(f"<p>{_line(paragraph)}</p>" for paragraph in markdown.split("\n\n") if paragraph.strip())


def _line(markdown: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(markdown))
