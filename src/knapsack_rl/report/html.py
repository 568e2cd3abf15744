"""Render pages from templates, with values escaped, and write them all or nothing. Needs jinja2 only."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from knapsack_rl.files import replacing

SHARED = Path(__file__).parent  # holds base.css, the style of all pages


def fill(template: Path, **values: object) -> str:
    """Render a template, which may include files of its own folder and `base.css`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def write_page(page: str, out: Path) -> Path:
    """Write the page all or nothing; missing folders are made."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # A completion may hold an unpaired surrogate, which UTF-8 cannot encode.
    with replacing(out) as file:
        file.write(page.encode("utf-8", errors="replace"))
    return out
