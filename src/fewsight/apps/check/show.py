"""The findings in the terminal."""

from rich.console import Console

from fewsight.apps.check.look import Checked
from fewsight.terminal import printable
from fewsight.wording import counted


def show_checked(console: Console, checked: Checked, *, most: int = 5) -> None:
    """What a check found: a heading for each kind, then the first few."""
    for split, counts in checked.counts.items():
        classes = "no labels" if "" in counts else counted(len(counts), "class")
        images = counted(sum(counts.values()), "image")
        console.print(f"{printable(split)}: {images} that can be read, {classes}")
    for one in checked.findings:
        console.print(f"{one.level}: {one.kind}: {len(one.groups):,}", style="bold")
        console.print(f"  {printable(one.text)}")
        for number, group in enumerate(one.groups[:most]):
            detail = f"  ({printable(one.details[number])})" if one.details else ""
            console.print(f"  {' = '.join(printable(name) for name in group[:most])}{detail}")
        if len(one.groups) > most:
            console.print(f"  and {len(one.groups) - most:,} more")
    if not checked.findings:
        console.print("nothing is wrong")
