"""The page of findings: one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..trials.run_folder import write_text
from .costs import ElementCost, NetworkCost
from .findings import Comparison, Finding


def write_page(
    path: Path,
    *,
    title: str,
    about: Sequence[str],
    costs: Sequence[ElementCost],
    networks: Sequence[NetworkCost],
    found: Sequence[Finding],
    slowdowns: Mapping[str, Sequence[Comparison]],
    figures: Mapping[str, str],
) -> None:
    """Writes the page.

    Args:
        title: the target.
        about: what was measured, in sentences.
        costs, networks: all rows.
        found: the findings; none where nothing was measured.
        slowdowns: by setting, time per MAC over dense convolutions.
        figures: SVG by title.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = (resources.files(__package__) / "page.html.jinja").read_text(encoding="utf-8")
    content: dict[str, Any] = {"title": title, "about": about, "costs": costs, "networks": networks, "found": found}
    text = environment.from_string(template).render(**content, slowdowns=slowdowns, figures=figures)
    write_text(path, text)
