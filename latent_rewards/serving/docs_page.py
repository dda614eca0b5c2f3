"""The description of a server's routes as one page, which needs no network and no script."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2430}"
    "code,pre{font:14px/1.45 ui-monospace,monospace}pre{background:#f4f6f9;padding:.8rem;overflow:auto}"
    "h2{border-top:1px solid #d8dee7;padding-top:1rem}table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;"
    "text-align:left;vertical-align:top}"
)


def page(spec: Mapping[str, object]) -> str:
    """HTML of an OpenAPI description.

    Args:
        spec: as FastAPI gives it.
    """
    info, paths = _mapping(spec.get("info")), _mapping(spec.get("paths"))
    schemas = _mapping(_mapping(spec.get("components")).get("schemas"))
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{_text(info.get('title'))}</title>",
        f"<style>{_STYLE}</style><h1>{_text(info.get('title'))} {_text(info.get('version'))}</h1>",
        f"<p>{_text(info.get('summary'))} The same for programs: <a href=openapi.json>openapi.json</a>.</p>",
    ]
    for path, methods in paths.items():
        for method, about in _mapping(methods).items():
            parts.append(_route(method, path, _mapping(about)))
    parts.append("<h2>Schemas</h2>")
    for name, schema in schemas.items():
        shown = html.escape(json.dumps(schema, indent=1, ensure_ascii=False))
        parts.append(f"<h3 id={_text(name)}>{_text(name)}</h3><pre>{shown}</pre>")
    return "\n".join(parts)


def _route(method: str, path: str, about: Mapping[str, object]) -> str:
    body = _mapping(_mapping(_mapping(about.get("requestBody")).get("content")).get("application/json"))
    rows = [f"<tr><th>body</th><td>{_link(_mapping(body.get('schema')))}</td></tr>"] if body else []
    given = about.get("parameters")
    for parameter in given if isinstance(given, list) else []:
        rows.append(f"<tr><th>?{_text(parameter.get('name'))}=</th><td>{_text(parameter.get('description'))}</td></tr>")
    for status, answer in _mapping(about.get("responses")).items():
        content = _mapping(_mapping(_mapping(answer).get("content")).get("application/json"))
        shown = _link(_mapping(content.get("schema"))) if status == "200" else ""
        rows.append(f"<tr><th>{_text(status)}</th><td>{_text(_mapping(answer).get('description'))} {shown}</td></tr>")
    head = f"<h2><code>{_text(method.upper())} {_text(path)}</code></h2><p>{_text(about.get('summary'))}</p>"
    return f"{head}<table>{''.join(rows)}</table>"


def _link(schema: Mapping[str, object]) -> str:
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    return f"<a href='#{_text(name)}'>{_text(name)}</a>" if name else _text(schema.get("type"))


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str:
    return html.escape("" if value is None else str(value))
