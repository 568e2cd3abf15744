"""Pages from templates: what they hold is escaped, and they are written all or nothing. Needs jinja2 alone."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from knapsack_rl.files import replacing

SHARED = Path(__file__).parent  # base.css, the look that all pages have


def fill(template: Path, **values: object) -> str:
    """The page that a template makes of values; it may include files beside it and `base.css`."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, SHARED]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)


def write_page(page: str, out: Path) -> Path:
    """Write the page all or nothing: a browser never loads half of it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # A model may emit half a surrogate pair, which UTF-8 cannot hold.
    with replacing(out) as file:
        file.write(page.encode("utf-8", errors="replace"))
    return out
