"""The findings as lines in the terminal."""

from rich.console import Console

from fewsight.apps.check.look import CheckResult
from fewsight.terminal import printable
from fewsight.wording import counted


def show_check(console: Console, checked: CheckResult, *, limit: int = 5) -> None:
    """Print the images per split, and the first groups of each finding under a heading."""
    for split, counts in checked.counts.items():
        classes = "no labels" if "" in counts else counted(len(counts), "class")
        images = counted(sum(counts.values()), "image")
        console.print(f"{printable(split)}: {images} that can be read, {classes}")
    for finding in checked.findings:
        console.print(f"{finding.level}: {finding.kind}: {len(finding.groups):,}", style="bold")
        console.print(f"  {printable(finding.text)}")
        for index, group in enumerate(finding.groups[:limit]):
            detail = f"  ({printable(finding.details[index])})" if finding.details else ""
            console.print(f"  {' = '.join(printable(name) for name in group[:limit])}{detail}")
        if len(finding.groups) > limit:
            console.print(f"  and {len(finding.groups) - limit:,} more")
    if not checked.findings:
        console.print("no problems found")
