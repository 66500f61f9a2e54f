"""The tables of a reproduction: in the terminal, as Markdown, as CSV and as JSON."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fewsight.apps.reproduce.answers import Effect, Reproduction, TableRow
from fewsight.apps.reproduce.published import FUSED
from fewsight.machine import files
from fewsight.scores.metrics import Proportion
from fewsight.terminal import trained_on_note

TITLES = {1: "Table 1. ResNeSt", 2: "Table 2. TResNet and SE-ResNeXt"}
HEADINGS = ("models", "loss", "train size", "test size", "report's test size", "report", "ours")
EFFECT_HEADINGS = ("question", "what for what", "gain in points [95 %]", "report")


def show_reproduction(console: Console, found: Reproduction) -> None:
    """Both tables, the means, the fusion and the effects."""
    if found.num_trained_on:
        console.print(trained_on_note(found.num_trained_on, found.num_images))
    for number, title in TITLES.items():
        rows = [row for row in found.rows if row.table == number]
        _print(console, f"{title}, top-1 on {found.fusion.total:,} images", HEADINGS, _row_cells(rows))
    console.print("the mean of the eight results", style="bold")
    for line in _mean_lines(found):
        console.print(f"  {line}")
    console.print(
        f"the fusion of {found.num_rows} rows: {found.fusion}   (the report, 28 rows: {FUSED:.4f})", style="bold"
    )
    _print(console, "what gives what (on the same images)", EFFECT_HEADINGS, _effect_cells(found.effects))
    console.print(f"  not distinguishable: the interval holds 0 on these {found.fusion.total:,} images")


def write_reproduction(out: Path, found: Reproduction) -> list[Path]:
    """tables.md, tables.csv, effects.csv and tables.json."""
    files.write_text(out / "tables.md", _markdown(found))
    cells = [
        [*("" if cell == "-" else cell for cell in row[:6]), *_share_cells(one.top1)]
        for row, one in zip(_row_cells(found.rows), found.rows, strict=True)
    ]
    fused = ["fusion", f"{found.num_rows} rows", "", "", "", f"{FUSED:.4f}", *_share_cells(found.fusion)]
    heading = ["models", "loss", "train_px", "test_px", "report_px", "report_top1", "top1", "low", "high", "images"]
    files.write_text(out / "tables.csv", _csv([heading, *cells, fused]))
    effects = [
        [one.question, one.name, f"{one.gain:.4f}", f"{one.low:.4f}", f"{one.high:.4f}", _report(one, 1)]
        for one in found.effects
    ]
    heading = ["question", "what", "gain", "low", "high", "report"]
    files.write_text(out / "effects.csv", _csv([heading, *effects]))
    files.write_json(out / "tables.json", asdict(found))
    return [out / name for name in ("tables.md", "tables.csv", "effects.csv", "tables.json")]


def _row_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    return [
        [
            f"{row.family} ({row.model})" if row.model else row.family,
            row.loss + (", collapsed" if row.collapsed else ""),
            "-" if row.train_px is None else str(row.train_px),
            "-" if row.test_px is None else str(row.test_px),
            str(row.report_px),
            f"{row.report_top1:.4f}",
            "not trained" if row.top1 is None else _short(row.top1),
        ]
        for row in rows
    ]


def _effect_cells(effects: Sequence[Effect]) -> list[list[str]]:
    return [
        [
            one.question,
            one.name,
            f"{100 * one.gain:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
            + ("" if one.distinguishable else ", not distinguishable"),
            _report(one, 100),
        ]
        for one in effects
    ]


def _report(effect: Effect, factor: float) -> str:
    if effect.report is None:
        return ""
    return f"{factor * effect.report:+.1f}" if factor == 100 else f"{effect.report:.4f}"


def _mean_lines(found: Reproduction) -> list[str]:
    return [f"{one.family}, {one.loss}: {one.top1}" for one in found.means]


def _short(share: Proportion) -> str:
    return f"{share.value:.4f} [{share.low:.3f}, {share.high:.3f}]"


def _share_cells(share: Proportion | None) -> list[str]:
    if share is None:
        return ["", "", "", ""]
    return [f"{share.value:.4f}", f"{share.low:.4f}", f"{share.high:.4f}", str(share.total)]


def _print(console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    console.print(title, style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right" if "size" in heading else "left")
    for one, before in zip(cells, [None, *cells], strict=False):
        same = before is not None and one[:2] == before[:2] and len(headings) == len(HEADINGS)
        table.add_row(*(["", "", *one[2:]] if same else one))
    console.print(table)


def _markdown(found: Reproduction) -> str:
    lines = [f"# The report's tables, {found.scale} scale", ""]
    if found.num_trained_on:
        lines += [trained_on_note(found.num_trained_on, found.num_images), ""]
    lines += [f"Top-1 on {found.fusion.total:,} images, with Wilson 95 % intervals.", ""]
    for number, title in TITLES.items():
        rows = _row_cells([row for row in found.rows if row.table == number])
        lines += [f"## {title}", "", *_pipes(HEADINGS, rows), ""]
    lines += ["## The mean of the eight results", "", *(f"- {line}" for line in _mean_lines(found)), ""]
    lines += ["## The fusion", "", f"{found.num_rows} rows, uniform: **{found.fusion}**; the report: {FUSED:.4f}.", ""]
    lines += ["## What gives what", "", "Differences on the same images, with bootstrap 95 % intervals.", ""]
    return "\n".join([*lines, *_pipes(EFFECT_HEADINGS, _effect_cells(found.effects)), ""])


def _pipes(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *cells]]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    handle = io.StringIO()
    csv.writer(handle).writerows(rows)
    return handle.getvalue()
