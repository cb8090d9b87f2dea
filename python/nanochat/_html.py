"""HTML for notebooks: inline styles, no scripts, nothing loaded. Every text that comes from a model, a file or a user
passes through escape()."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat._types import Completion, ModelInfo, ZooEntry

# Colours follow the theme of JupyterLab where it defines them.
_COLOURS = {
    "comment": "var(--jp-mirror-editor-comment-color,#6a737d)",
    "string": "var(--jp-mirror-editor-string-color,#a5521b)",
    "macro": "var(--jp-mirror-editor-def-color,#1f6fb2)",
    "name": "var(--jp-mirror-editor-def-color,#1f6fb2)",
    "keyword": "var(--jp-mirror-editor-keyword-color,#8a3ab9)",
    "number": "var(--jp-mirror-editor-number-color,#2f7d4f)",
    "life": "var(--jp-mirror-editor-atom-color,#2f7d4f)",
    "type": "var(--jp-mirror-editor-atom-color,#2a6f97)",
}

# The words of Rust; most are those of other languages too.
_WORDS = (
    "as async await break class const continue crate def dyn else enum extern false False fn for from if impl in "
    "import let loop match mod move mut None pub ref return self static struct super trait true True type union "
    "unsafe use where while"
).split()

_CODE = re.compile(
    r"(?P<comment>//[^\n]*|/\*.*?(?:\*/|\Z)|^[ \t]*\#(?!\[|!\[)[^\n]*)"
    r'|(?P<string>b?"(?:\\.|[^"\\])*(?:"|\Z)|b?\'(?:\\[^\n]|[^\'\\\n])\')'
    r"|(?P<life>'[a-z_]\w*\b)"
    r"|(?P<macro>\b[a-z_]\w*!(?!=))"
    r"|(?<=\bfn )(?P<name>\w+)"
    r"|(?P<keyword>\b(?:" + "|".join(_WORDS) + r")\b)"
    r"|(?P<type>\b(?:[A-Z]\w*[a-z]\w*|[iuf](?:8|16|32|64|128|size)|bool|str|char|usize|isize)\b)"
    r"|(?P<number>\b\d[\w.]*)",
    re.M | re.S,
)

_BOX = (
    "white-space:pre-wrap;overflow-wrap:anywhere;text-align:left;margin:0;padding:8px 12px;border:0;"
    "border-left:3px solid #c2601a;border-radius:2px;background:rgba(128,128,128,.08);line-height:1.45;"
    "font-family:var(--jp-code-font-family,ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace);font-size:13px"
)
_SMALL = "opacity:.7;font-size:12px;margin-top:4px;text-align:left;font-variant-numeric:tabular-nums"


def code(text: str) -> str:
    """Text with light colours, as HTML."""
    out, at = [], 0
    for m in _CODE.finditer(text):
        if m.start() > at:
            out.append(escape(text[at : m.start()]))
        out.append(f'<span style="color:{_COLOURS[m.lastgroup or "name"]}">{escape(m[0])}</span>')
        at = m.end()
    out.append(escape(text[at:]))
    return "".join(out)


def _box(prompt: str | None, text: str, end: str = "") -> str:
    before = f'<span style="opacity:.55">{escape(prompt)}</span>' if prompt else ""
    return f'<pre style="{_BOX}">{before}{code(text)}{end}</pre>'


def partial(prompt: str | None, text: str) -> str:
    """An answer that is being written."""
    return _box(prompt, text, '<span style="color:#c2601a">▌</span>')


def completion(c: Completion) -> str:
    """An answer with its numbers."""
    u = c.usage
    facts = [f"{u.completion_tokens} token{'s' * (u.completion_tokens != 1)}"]
    if u.tokens_per_second:
        facts.append(f"{u.tokens_per_second:,.0f} tok/s")
    facts += [escape(c.finish_reason), f"seed {c.seed}"]
    return f'<div>{_box(c.prompt, c.text)}<div style="{_SMALL}">{" · ".join(facts)}</div></div>'


def table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Two columns; both are escaped."""
    cell = "text-align:left;padding:2px 14px 2px 0;vertical-align:top;background:none;border:0"
    body = "".join(
        f'<tr style="background:none"><td style="{cell};opacity:.7">{escape(k)}</td>'
        f'<td style="{cell};overflow-wrap:anywhere">{escape(v)}</td></tr>'
        for k, v in rows
        if v
    )
    return (
        f'<div style="text-align:left"><b>{escape(title)}</b>'
        f'<table style="border-collapse:collapse;margin:4px 0;font-size:13px"><tbody>{body}</tbody></table></div>'
    )


def count(n: float) -> str:
    """A number with three digits: "6.83 M"."""
    for unit, one in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= one:
            return f"{n / one:.3g} {unit}"
    return f"{n:.0f}"


def model(info: ModelInfo, closed: bool) -> str:
    from nanochat._display import size

    bits = f"{info.bits_per_weight:.2f}" if info.bits_per_weight else ""
    rows = [
        ("parameters", count(info.params.get("total", 0))),
        ("bits per weight", bits),
        ("layers", str(info.layers or "")),
        ("context", f"{info.context} tokens"),
        ("vocabulary", f"{info.vocab_size} tokens"),
        ("chat template", info.chat_template),
        ("kernel", f"{info.kernel}, {info.threads} thread{'s' * (info.threads != 1)}"),
        ("memory of weights", size(info.weight_bytes) if info.weight_bytes else ""),
        ("file", os.path.basename(info.path) + (f" ({size(info.bytes)})" if info.bytes else "")),
        ("SHA-256", info.sha256[:12] + "…" if info.sha256 else ""),
        ("licence", info.licence),
        ("state", "closed" if closed else ""),
    ]
    return table(info.name or os.path.basename(info.path), rows)


def bar(fraction: float, line: str) -> str:
    """A bar with a line of text below."""
    inner = f"background:#c2601a;height:8px;border-radius:4px;width:{100 * fraction:.1f}%"
    outer = "background:rgba(128,128,128,.2);height:8px;border-radius:4px;max-width:640px"
    return (
        f'<div style="text-align:left"><div style="{outer}"><div style="{inner}"></div></div>'
        f'<div style="{_SMALL}">{escape(line)}</div></div>'
    )


def grid(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table with a head; everything is escaped."""
    cell = "text-align:left;padding:3px 14px 3px 0;vertical-align:top"
    top = "".join(f'<th style="{cell}">{escape(h)}</th>' for h in head)
    short = "white-space:nowrap;" + cell  # all but the last column
    body = ""
    for row in rows:
        styles = [short] * (len(row) - 1) + [cell]
        body += (
            "<tr>"
            + "".join(f'<td style="{s}">{escape(str(v))}</td>' for s, v in zip(styles, row, strict=True))
            + "</tr>"
        )
    style = "border-collapse:collapse;font-size:13px"
    return f'<table style="{style}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'


def zoo(entries: Sequence[ZooEntry]) -> str:
    from nanochat._display import size

    rows = [(e.name, e.state, size(e.size) if e.size else "", e.licence, e.description) for e in entries]
    return grid(("model", "state", "size", "licence", "description"), rows)
