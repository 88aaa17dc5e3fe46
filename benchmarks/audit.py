"""What pipeline.audit finds of errors that were planted: flipped labels, copies across splits.

    python benchmarks/audit.py --output DIR --seeds 5     on CPUs, with Ray: about ten minutes

The scenes of `shapes` are written as photographs, 4,000 to train on and 1,000 to test. Of 100 test
images a copy is put among the training images: 20 each as they are, as JPEG of quality 90 and 50,
at half the size, and without a border of 2.5 %. For each seed 2 % of all labels of the scenes are
flipped, present to absent and back, and the audit is run from nothing. `precision_at_k` is the
number of flipped labels among the first k of the list over k, with k the number that was flipped,
so that it is recall there as well. The last line of stdout is JSON.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from dclip.data.tables import read_table
from dclip.world.dataset import ShapesListing
from pipeline.records.labels_table import write_labels

SHARE = 0.02
KINDS = ("same", "jpeg90", "jpeg50", "half", "border")


def copy_of(image: Image.Image, kind: str) -> Image.Image:
    """A copy as people make them."""
    width, height = image.size
    if kind.startswith("jpeg"):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(kind.removeprefix("jpeg")))
        return Image.open(file).convert("RGB")
    if kind == "half":
        return image.resize((width // 2, height // 2), Image.Resampling.BILINEAR)
    if kind == "border":
        edge = round(0.025 * width)
        return image.crop((edge, edge, width - edge, height - edge))
    return image


def write_photographs(folder: Path) -> tuple[list[str], np.ndarray, dict[str, str]]:
    """Training files with their true labels, and the test image that each copy is of."""
    train, test = ShapesListing("train"), ShapesListing("test")
    folder.mkdir(parents=True, exist_ok=True)
    files, labels, copies = [], [], {}
    for split, listing in (("train", train), ("test", test)):
        names, vectors = [], []
        for index in range(len(listing)):
            image, vector = listing.read(index)
            names.append(f"{split}-{index:04d}.png")
            vectors.append(vector)
            if not (folder / names[-1]).exists():
                image.save(folder / names[-1], compress_level=1)
        if split == "test":
            table = folder / "test.csv"
            table.unlink(missing_ok=True)
            write_labels(table, names, listing.class_names, np.stack(vectors).astype(np.int8))
        else:
            files, labels = names, vectors
    for number in range(100):
        index, kind = 10 * number, KINDS[number % len(KINDS)]
        image, vector = test.read(index)
        name = f"copy-{kind}-{index:04d}.png"
        copy_of(image, kind).save(folder / name, compress_level=1)
        files.append(name)
        labels.append(vector)
        copies[Path(name).stem] = f"test-{index:04d}"
    return files, np.stack(labels).astype(np.int8), copies


def run(folder: Path, output: Path, stage: str, *words: str) -> None:
    """A stage on the photographs, in a process of its own."""
    common = ["--dataset", f"folder:{folder}", "--backbone", "tiny", "--output", str(output)]
    command = [sys.executable, "-m", f"pipeline.{stage}", *common, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Plant, look, and count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for all that is written")
    parser.add_argument("--seeds", type=int, default=5, help="draws of the flipped labels")
    given = parser.parse_args()
    folder = given.output / "photos"
    files, truth, copies = write_photographs(folder)
    class_names = ShapesListing("train").class_names
    rows = []
    for seed in range(given.seeds):
        scenes = len(files) - len(copies)
        count = round(SHARE * scenes * len(class_names))
        at = np.random.default_rng(seed).choice(scenes * len(class_names), count, replace=False)
        labels = truth.copy()
        flat = labels[:scenes].reshape(-1)
        flat[at] = 1 - flat[at]
        (folder / "train.csv").unlink(missing_ok=True)
        write_labels(folder / "train.csv", files, class_names, labels)
        flipped = {
            (Path(files[row]).stem, class_names[column])
            for row, column in zip(*np.nonzero(labels != truth), strict=True)
        }
        run(folder, given.output / "outputs", "extract")
        fixed = folder / f"fixed-{seed}.csv"
        fixed.unlink(missing_ok=True)
        run(folder, given.output / "outputs", "audit", "--write-labels", str(fixed))
        table = read_table(fixed)
        after = table.labels[:, [table.classes.index(name) for name in class_names]]
        fixed.unlink()
        (report,) = sorted(
            (given.output / "outputs" / "reports").glob("audit-*"), key=lambda p: p.stat().st_mtime
        )[-1:]
        with (report / "label_issues.csv").open(newline="") as file:
            hits = np.array([(row["key"], row["class"]) in flipped for row in csv.DictReader(file)])
        with (report / "copies.csv").open(newline="") as file:
            pairs = {
                (row["key_1"], row["key_2"])
                for row in csv.DictReader(file)
                if row["leak"] == "True"
            }
        found = {copy for copy, test in copies.items() if (copy, test) in pairs}
        told = json.loads((report / "report.json").read_text())
        rows.append(
            {
                "seed": seed,
                "flipped": count,
                "listed": len(hits),
                "precision_at_quarter": float(hits[: count // 4].mean()),
                "precision_at_half": float(hits[: count // 2].mean()),
                "precision_at_k": float(hits[:count].sum() / count),
                "precision": float(hits.mean()),
                "recall": float(hits.sum() / count),
                "wrong_before": int((labels != truth).sum()),
                "wrong_after": int((after != truth).sum()),
                "copies_found": len(found),
                "copies_missed": sorted(copies.keys() - found),
                "false_leaks": len(pairs - set(copies.items())),
                "map": told["rounds"],
                "seconds": told["seconds"],
            }
        )
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    sys.stdout.write(json.dumps({"benchmark": "audit", "rows": rows}) + "\n")


if __name__ == "__main__":
    main()
