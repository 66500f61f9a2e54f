"""The tables of a reproduction: in the terminal, as Markdown, as CSV and as JSON."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from fewsight.apps.reproduce.published import FUSION_TOP1
from fewsight.apps.reproduce.tables import Effect, Reproduction, TableRow
from fewsight.machine import files
from fewsight.scores.metrics import Proportion
from fewsight.terminal import plain_table, trained_on_note

TITLES = {1: "Table 1. ResNeSt", 2: "Table 2. TResNet and SE-ResNeXt"}
HEADINGS = ("models", "loss", "train size", "test size", "paper's test size", "paper", "ours")
EFFECT_HEADINGS = ("question", "comparison", "gain in points [95 %]", "paper")
# CSV and JSON files call the paper "report": programs, `fewsight report` among them, read those of older versions too
JSON_KEYS = {"paper_px": "report_px", "paper_top1": "report_top1", "paper_gain": "report"}


def show_reproduction(console: Console, reproduction: Reproduction) -> None:
    """Print both tables, the means, the fusion and the ablation."""
    num_images = reproduction.fusion.total
    if reproduction.num_trained_on:
        console.print(trained_on_note(reproduction.num_trained_on, reproduction.num_images))
    for number, title in TITLES.items():
        rows = [row for row in reproduction.rows if row.table == number]
        _print(console, f"{title}, top-1 on {num_images:,} images", HEADINGS, _row_cells(rows))
    console.print("the mean of the eight results", style="bold")
    for line in _mean_lines(reproduction):
        console.print(f"  {line}")
    fusion = f"the fusion of {reproduction.num_rows} rows: {reproduction.fusion}"
    console.print(f"{fusion}   (the paper, 28 rows: {FUSION_TOP1:.4f})", style="bold")
    _print(console, "ablation (on the same images)", EFFECT_HEADINGS, _effect_cells(reproduction.effects))
    console.print(f"  not distinguishable: the interval contains 0 on these {num_images:,} images")


def write_reproduction(out: Path, reproduction: Reproduction) -> list[Path]:
    """Write tables.md, tables.csv, effects.csv and tables.json, and return their paths."""
    files.write_text(out / "tables.md", _markdown(reproduction))
    cells = [
        [*("" if cell == "-" else cell for cell in cells[:6]), *_top1_cells(row.top1)]
        for cells, row in zip(_row_cells(reproduction.rows), reproduction.rows, strict=True)
    ]
    num_rows, fusion = f"{reproduction.num_rows} rows", _top1_cells(reproduction.fusion)
    fused = ["fusion", num_rows, "", "", "", f"{FUSION_TOP1:.4f}", *fusion]
    heading = ["models", "loss", "train_px", "test_px", "report_px", "report_top1", "top1", "low", "high", "images"]
    files.write_text(out / "tables.csv", _csv([heading, *cells, fused]))
    effects = [
        [
            effect.question,
            effect.name,
            *(f"{value:.4f}" for value in (effect.gain, effect.low, effect.high)),
            "" if effect.paper_gain is None else f"{effect.paper_gain:.4f}",
        ]
        for effect in reproduction.effects
    ]
    heading = ["question", "what", "gain", "low", "high", "report"]
    files.write_text(out / "effects.csv", _csv([heading, *effects]))
    files.write_json(out / "tables.json", asdict(reproduction, dict_factory=_with_json_keys))
    return [out / name for name in ("tables.md", "tables.csv", "effects.csv", "tables.json")]


def _with_json_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {JSON_KEYS.get(name, name): value for name, value in items}


def _row_cells(rows: Sequence[TableRow]) -> list[list[str]]:
    return [
        [
            f"{row.family} ({row.model})" if row.model else row.family,
            row.loss + (", collapsed" if row.collapsed else ""),
            "-" if row.train_px is None else str(row.train_px),
            "-" if row.test_px is None else str(row.test_px),
            str(row.paper_px),
            f"{row.paper_top1:.4f}",
            "not trained" if row.top1 is None else _with_interval(row.top1),
        ]
        for row in rows
    ]


def _effect_cells(effects: Sequence[Effect]) -> list[list[str]]:
    return [
        [
            effect.question,
            effect.name,
            f"{100 * effect.gain:+.1f} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
            + ("" if effect.distinguishable else ", not distinguishable"),
            "" if effect.paper_gain is None else f"{100 * effect.paper_gain:+.1f}",
        ]
        for effect in effects
    ]


def _mean_lines(reproduction: Reproduction) -> list[str]:
    return [f"{mean.family}, {mean.loss}: {mean.top1}" for mean in reproduction.means]


def _with_interval(top1: Proportion) -> str:
    return f"{top1.value:.4f} [{top1.low:.3f}, {top1.high:.3f}]"


def _top1_cells(top1: Proportion | None) -> list[str]:
    if top1 is None:
        return ["", "", "", ""]
    return [f"{top1.value:.4f}", f"{top1.low:.4f}", f"{top1.high:.4f}", str(top1.total)]


def _print(console: Console, title: str, headings: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    console.print(title, style="bold")
    table = plain_table()
    for heading in headings:
        table.add_column(heading, justify="right" if "size" in heading else "left")
    for row, before in zip(cells, [None, *cells], strict=False):
        same_model = before is not None and row[:2] == before[:2] and len(headings) == len(HEADINGS)
        table.add_row(*(["", "", *row[2:]] if same_model else row))
    console.print(table)


def _markdown(reproduction: Reproduction) -> str:
    lines = [f"# The paper's tables, {reproduction.scale} scale", ""]
    if reproduction.num_trained_on:
        lines += [trained_on_note(reproduction.num_trained_on, reproduction.num_images), ""]
    lines += [f"Top-1 on {reproduction.fusion.total:,} images, with Wilson 95 % intervals.", ""]
    for number, title in TITLES.items():
        rows = _row_cells([row for row in reproduction.rows if row.table == number])
        lines += [f"## {title}", "", *_pipes(HEADINGS, rows), ""]
    lines += ["## The mean of the eight results", "", *(f"- {line}" for line in _mean_lines(reproduction)), ""]
    fusion = f"{reproduction.num_rows} rows, uniform: **{reproduction.fusion}**; the paper: {FUSION_TOP1:.4f}."
    lines += ["## The fusion", "", fusion, ""]
    lines += ["## Ablation", "", "Differences on the same images, with bootstrap 95 % intervals.", ""]
    return "\n".join([*lines, *_pipes(EFFECT_HEADINGS, _effect_cells(reproduction.effects)), ""])


def _pipes(headings: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [headings, ["---"] * len(headings), *cells]]


def _csv(rows: Sequence[Sequence[str]]) -> str:
    handle = io.StringIO()
    csv.writer(handle).writerows(rows)
    return handle.getvalue()
