"""Precision and recall of `fewsight check` on real images with planted faults, and its time.

`python -m benchmarks.check faults FOLDER [--each 50]`: FOLDER has train/ and val/ by class, such as
tiny-imagenet-50. It is checked as it is, with an empty memory and again; then a copy of train/ and val/ with that many
faults of each kind, on images drawn by seed. What is found in the data as they are is neither planted nor false.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from PIL import Image

from benchmarks.check.near_duplicates import COPIES
from benchmarks.machine import about, busy_processes, keep, listed
from fewsight.apps.check import CheckResult, check

NEAR = ["JPEG, quality 30", "3/4 of the size", "brighter by 20 %", "mirrored", "grey"]
CLASSES = 5  # of each fault of whole classes
LARGE = 3  # images of 56 megapixels
Groups = dict[str, set[frozenset[str]]]


class Planter:
    """Draws images and classes, each for one fault, and remembers what was planted."""

    def __init__(self, root: Path, used: set[str]) -> None:
        self.root, self.rng = root, random.Random(0)
        self.planted: Groups = defaultdict(set)
        classes = sorted(path.name for path in (root / "train").iterdir())
        self.rng.shuffle(classes)
        self.whole, self.others = classes[: 5 * CLASSES], sorted(classes[5 * CLASSES :])
        images = [path for name in self.others for path in sorted((root / "train" / name).iterdir())]
        self.images = [path for path in images if str(path.relative_to(root)) not in used]
        self.rng.shuffle(self.images)

    def draw(self) -> Path:
        return self.images.pop()

    def note(self, kind: str, *paths: Path | str) -> None:
        named = (str(path.relative_to(self.root)) if isinstance(path, Path) else path for path in paths)
        self.planted[kind].add(frozenset(named))

    def replace(self, path: Path, suffix: str = "") -> Path:
        """The name for what stands in an image's place; the image itself goes."""
        path.unlink()
        return path.with_name(f"planted-{path.stem}{suffix or path.suffix}")

    def other_class(self, path: Path) -> str:
        return self.rng.choice([name for name in self.others if name != path.parent.name])

    def files(self, each: int) -> None:
        for _ in range(each):
            target = self.replace(self.draw())
            target.write_bytes(b"")
            self.note("empty file", target)
            target = self.replace(self.draw())
            target.write_text("not an image\n" * 50)
            self.note("unreadable", target)
            source = self.draw()
            data = source.read_bytes()
            target = self.replace(source)
            target.write_bytes(data[: int(len(data) * self.rng.uniform(0.5, 0.98))])
            self.note("truncated", target)
            source = self.draw()
            target = source.with_name(f"planted-{source.stem}.png")
            source.rename(target)
            self.note("wrong extension", target)
            source = self.draw()
            image = Image.open(source).convert("RGB")
            target = self.replace(source, ".gif")
            image.save(target, save_all=True, append_images=[image.rotate(90)])
            self.note("animated", target)
            source = self.draw()
            image, exif = Image.open(source).convert("RGB"), Image.Exif()
            exif[274] = self.rng.randint(2, 8)
            target = self.replace(source)
            image.save(target, "JPEG", exif=exif, quality=95)
            self.note("EXIF-rotated", target)
            self.resized("extremely small", (6, 5))
            self.resized("extremely long", (900, 64))
        for _ in range(LARGE):
            self.resized("extremely large", (8000, 7000))

    def resized(self, kind: str, size: tuple[int, int]) -> None:
        source = self.draw()
        image = Image.open(source).convert("RGB").resize(size)
        target = self.replace(source)
        image.save(target, "JPEG")
        self.note(kind, target)

    def copies(self, each: int) -> None:
        for how in ("equal", *NEAR):
            word = "equal" if how == "equal" else "nearly equal"
            for _ in range(each if how == "equal" else max(1, each // len(NEAR))):
                for split, moved in (("val", False), ("val", True), ("train", True), ("train", False)):
                    source = self.draw()
                    label = self.other_class(source) if moved else source.parent.name
                    target = self.root / split / label / f"planted-{source.stem}.png"
                    image = Image.open(source).convert("RGB")
                    (image if how == "equal" else COPIES[how](image)).save(target)
                    if split == "val":
                        self.note(f"leak: {word} images across splits", source, target)
                    if moved:
                        self.note(f"conflicting labels: {word} images in several classes", source, target)
                    if split == "train" and not moved:
                        self.note(f"duplicates: {word} images in one class", source, target)

    def classes(self) -> None:
        for number in range(CLASSES):
            (self.root / "train" / f"empty{number}").mkdir()
            self.note("empty class", f"train/empty{number}")
            (self.root / "train" / f".hidden{number}").mkdir()
            self.note("hidden", f"train/.hidden{number}")
            tiny, lacking, unknown, alike, _ = self.whole[5 * number : 5 * number + 5]
            for path in sorted((self.root / "train" / tiny).iterdir())[3:]:
                path.unlink()
            self.note("tiny class", tiny)
            shutil.rmtree(self.root / "val" / lacking)
            self.note("classes that a split lacks", lacking)
            shutil.rmtree(self.root / "train" / unknown)
            self.note("classes that train lacks", unknown)
            twin = f"{alike.upper()} "
            for split in ("train", "val"):
                paths = sorted((self.root / split / alike).iterdir())
                (self.root / split / twin).mkdir()
                for path in paths[: len(paths) // 2]:
                    path.rename(self.root / split / twin / path.name)
            self.note("classes that look alike", alike, twin)


def groups(checked: CheckResult) -> Groups:
    return {one.kind: {frozenset(group) for group in one.groups} for one in checked.findings}


def timed(root: Path) -> tuple[CheckResult, float]:
    began = time.perf_counter()
    checked = check(root)
    return checked, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=50)
    options = parser.parse_args()
    if busy := busy_processes():
        raise SystemExit(f"something else runs: {', '.join(busy)}")
    first, second = [], []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as memory:
            os.environ["FEWSIGHT_CACHE"] = memory
            clean, seconds = timed(options.folder)
            first.append(seconds)
            second.append(timed(options.folder)[1])
    before = groups(clean)
    count = sum(1 for path in options.folder.rglob("*") if path.is_file() and path.parent != options.folder)
    with tempfile.TemporaryDirectory() as place:
        os.environ["FEWSIGHT_CACHE"] = f"{place}/memory"
        root = Path(place) / "data"
        for split in ("train", "val"):
            shutil.copytree(options.folder / split, root / split)
        planter = Planter(root, {path for those in before.values() for group in those for path in group})
        planter.files(options.each)
        planter.copies(options.each)
        planter.classes()
        found = groups(timed(root)[0])
    rows = []
    for kind in sorted({*planter.planted, *found} - {"imbalance"}):
        wanted, told = planter.planted.get(kind, set()), found.get(kind, set()) - before.get(kind, set())
        rows.append((kind, len(wanted), len(wanted & told), sorted(map(sorted, told - wanted))))
    each = 10_000 / count
    as_is = ", ".join(f"{len(those)} x {kind}" for kind, those in before.items())
    setting = about("check faults", [], images=f"{options.folder.name}, {count:,}")
    timing = (
        f"Seconds for 10,000 images, median of 3 (least to most): {each * statistics.median(first):.1f} "
        f"({each * min(first):.1f} to {each * max(first):.1f}), again {each * statistics.median(second):.1f}.\n\n"
        f"In the data as they are: {as_is or 'nothing'}."
    )
    lines = [
        *listed(setting),
        timing,
        "",
        "| finding | planted | of them found | found but not planted |",
        "|---|---|---|---|",
    ]
    lines += [f"| {kind} | {wanted} | {right} | {len(false)} |" for kind, wanted, right, false in rows]
    planted, right = sum(row[1] for row in rows), sum(row[2] for row in rows)
    false = sum(len(row[3]) for row in rows)
    shares = f"recall {right / planted:.3f}, precision {right / (right + false):.3f}"
    lines.append(f"| all: {shares} | {planted} | {right} | {false} |")
    print("\n".join(lines))
    for kind, _, _, strange in rows:
        for group in strange[:5]:
            print(f"not planted, {kind}: {group}")
    values = {"about": setting, "first": first, "second": second, "rows": rows}
    keep("check-faults", "Planted faults", lines, values)


if __name__ == "__main__":
    main()
