"""The findings as one HTML file with thumbnails, which opens without a network."""

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fewsight.apps.check.findings import Finding
from fewsight.apps.check.look import Checked
from fewsight.apps.pictures import thumbnail
from fewsight.data import ImageError, load_image
from fewsight.machine import files
from fewsight.terminal import printable
from fewsight.wording import counted

SHOWN = 60  # groups of a finding
SHOWN_TOGETHER = 8  # images of a group
THUMBNAIL_PX = 144


def write_page(checked: Checked, target: Path) -> None:
    """Write the page.

    Raises:
        RunError: the file cannot be written.
    """
    template = resources.files("fewsight.apps.check").joinpath("page.html").read_text(encoding="utf-8")
    page = Environment(autoescape=True, undefined=StrictUndefined).from_string(template)
    splits = [
        {
            "name": printable(name),
            "classes": len(counts) if "" not in counts else "no labels",
            "images": sum(counts.values()),
            "range": f"{min(counts.values()):,} to {max(counts.values()):,}",
        }
        for name, counts in checked.counts.items()
    ]
    shown = [_shown(one, checked.root) for one in checked.findings]
    text = page.render(
        name=printable(checked.data), images=counted(checked.num_images, "image"), splits=splits, findings=shown
    )
    files.write_text(target, text)


def _shown(finding: Finding, root: Path) -> dict[str, Any]:
    groups = [
        {
            "images": [{"path": printable(path), "src": _thumbnail(root / path)} for path in group[:SHOWN_TOGETHER]],
            "detail": printable(finding.details[number]) if finding.details else "",
        }
        for number, group in enumerate(finding.groups[:SHOWN])
    ]
    return {
        "kind": finding.kind,
        "level": finding.level,
        "text": printable(finding.text),
        "count": len(finding.groups),
        "groups": groups,
        "more": max(0, len(finding.groups) - SHOWN),
    }


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data address; empty where there is no image."""
    if not path.is_file():
        return ""
    try:
        image = load_image(path)
    except ImageError:
        return ""
    return thumbnail(image, THUMBNAIL_PX)
