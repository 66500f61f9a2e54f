"""The findings as one HTML file with thumbnails, which needs no network."""

from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from fewsight.apps.check.findings import Finding
from fewsight.apps.check.look import CheckResult
from fewsight.apps.pictures import thumbnail
from fewsight.data import ImageError, load_image
from fewsight.machine import files
from fewsight.terminal import printable
from fewsight.wording import counted

MAX_GROUPS = 60  # shown of a finding
MAX_IMAGES = 8  # shown of a group
THUMBNAIL_PX = 144


def write_page(checked: CheckResult, target: Path) -> None:
    """Write the page to `target`.

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
    findings = [_shown(finding, checked.root) for finding in checked.findings]
    html = page.render(
        name=printable(checked.data), images=counted(checked.num_images, "image"), splits=splits, findings=findings
    )
    files.write_text(files.link_target(target), html)


def _shown(finding: Finding, root: Path) -> dict[str, Any]:
    """A finding as the template needs it."""
    groups = [
        {
            "images": [{"path": printable(path), "src": _thumbnail(root / path)} for path in group[:MAX_IMAGES]],
            "detail": printable(finding.details[index]) if finding.details else "",
        }
        for index, group in enumerate(finding.groups[:MAX_GROUPS])
    ]
    return {
        "kind": finding.kind,
        "level": finding.level,
        "text": printable(finding.text),
        "count": len(finding.groups),
        "groups": groups,
        "more": max(0, len(finding.groups) - MAX_GROUPS),
    }


def _thumbnail(path: Path) -> str:
    """A small JPEG as a data URL; empty where there is no readable image."""
    if not path.is_file():
        return ""
    try:
        image = load_image(path)
    except ImageError:
        return ""
    return thumbnail(image, THUMBNAIL_PX)
