"""The findings as lines in the terminal."""

from rich.console import Console

from fewsight.apps.check.look import CheckResult
from fewsight.terminal import printable
from fewsight.wording import counted, first_few


def show_check(console: Console, checked: CheckResult, *, limit: int = 5) -> None:
    """Print the images per split, and the first groups of each finding under a heading."""
    for split, counts in checked.counts.items():
        classes = "no labels" if "" in counts else counted(len(counts), "class")
        images = counted(sum(counts.values()), "image")
        console.print(f"{printable(split)}: {images} that can be read, {classes}")
    for note in checked.notes:
        console.print(f"note: {printable(note)}")
    for finding in checked.findings:
        console.print(f"{finding.level}: {finding.kind}: {len(finding.groups):,}", style="bold")
        console.print(f"  {printable(finding.text)}")
        details = [f"  ({detail})" for detail in finding.details] or [""] * len(finding.groups)
        groups = [
            " = ".join(first_few(group, limit)) + detail for group, detail in zip(finding.groups, details, strict=True)
        ]
        for line in first_few(groups, limit):
            console.print(f"  {printable(line)}")
    if not checked.findings:
        console.print("no problems found")
