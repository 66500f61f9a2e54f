"""The data sets of the benchmark, all below one folder."""

from dataclasses import dataclass
from pathlib import Path

DOMAINS = ("skin", "coffee", "satellite", "steel", "trash", "grocery", "butterfly")


@dataclass(frozen=True)
class DataSet:
    """A folder with `train/` and `val/`, and the images that are scored once, at the very end."""

    name: str
    folder: str
    devtest: str = ""  # none: FOLDER/devtest
    px: int = 64  # of the peers, whose scripts have one size
    merge_val: bool = False  # before devtest is scored, every side trains on train and val: the published protocol

    def images(self, data: Path, split: str) -> Path:
        """The folder of class folders of a split."""
        return data / self.devtest if split == "devtest" and self.devtest else data / self.folder / split


SETS = {
    **{name: DataSet(name, f"domains/{name}") for name in DOMAINS},
    "tiny20": DataSet("tiny20", "tiny20"),
    **{
        f"cifar10-50-{k}": DataSet(f"cifar10-50-{k}", f"cifar10-50/split{k}", "cifar10-50/devtest", 32, merge_val=True)
        for k in range(3)
    },
}
DEFAULT = [*DOMAINS, "tiny20", "cifar10-50-0"]
