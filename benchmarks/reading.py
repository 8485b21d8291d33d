"""Reading annotation files: time and peak memory of ``json.load`` and of ``read_coco``, first and from the index.

python benchmarks/reading.py                 10,000 and 100,000 images
python benchmarks/reading.py --large         also as many as Objects365 has: 1.74 million, 25 million boxes (6 GB)

The files are synthetic, with 14 to 15 boxes per image and empty files as pictures. Every measurement is a process of
its own, rounds are interleaved, and the ratio is that of the medians of the processor time in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SIZES, LARGE = (10_000, 100_000), 1_742_289
BOXES = 14.4  # per image
FOLDER_IMAGES = 35_000  # pictures in one folder, about as in Objects365
WAYS = ("json.load", "first", "index")
IMPORTS = {
    "json.load": "import json",
    "first": "import dfine_jax.data.read.coco",
    "index": "import dfine_jax.data.read.coco",
}


def make(root: Path, images: int) -> Path:
    """A dataset of so many images; nothing is done if it is there."""
    file = root / f"{images}.json"
    pictures = root / f"{images}"
    if file.exists():
        return file
    rng = np.random.default_rng(0)
    part = file.with_suffix(".part")
    with part.open("w") as stream:
        stream.write('{"images": [')
        for i in range(images):
            name = f"patch{i // FOLDER_IMAGES}/{i:08d}.jpg"
            if i % FOLDER_IMAGES == 0:
                (pictures / name).parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(pictures / name, os.O_CREAT | os.O_WRONLY))
            stream.write(f'{", " * bool(i)}{{"id": {i + 1}, "file_name": "{name}", "width": 640, "height": 480}}')
        categories = [{"id": k + 1, "name": f"class {k}"} for k in range(365)]
        stream.write(f'], "categories": {json.dumps(categories)}, "annotations": [')
        number = 0
        for start in range(0, images, 10_000):
            of = np.arange(start, min(start + 10_000, images))
            counts = rng.poisson(BOXES, len(of))
            of = np.repeat(of, counts)
            boxes = np.round(
                np.concatenate([rng.random((len(of), 2)) * [500, 350], rng.random((len(of), 2)) * 99 + 9], 1), 2
            )
            classes = rng.integers(1, 366, len(of))
            entries = []
            for image, box, category in zip(of.tolist(), boxes.tolist(), classes.tolist(), strict=True):
                number += 1
                entries.append(
                    f'{{"id": {number}, "image_id": {image + 1}, "category_id": {category}, "bbox": {box}, '
                    f'"area": {round(box[2] * box[3], 4)}, "iscrowd": 0}}'
                )
            stream.write(f"{', ' * bool(start)}{', '.join(entries)}")
        stream.write("]}")
    part.rename(file)
    return file


def measure(way: str, file: Path) -> None:
    """One reading, in this process; prints its numbers."""
    exec(IMPORTS[way])
    base_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, processor = time.perf_counter(), time.process_time()
    if way == "json.load":
        with file.open("rb") as stream:
            images = len(json.load(stream)["images"])
    else:
        from dfine_jax.data.read.coco import read_coco

        images = len(read_coco(file, file.with_suffix("")))
    out = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - processor,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "base_mib": base_mib,
        "images": images,
    }
    print(json.dumps(out))


def main() -> None:
    """Make the files, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also as many images as Objects365 has")
    parser.add_argument("--only-large", action="store_true", help="that alone")
    parser.add_argument("--rounds", type=int, default=3, help="of the largest file one round is enough")
    parser.add_argument(
        "--root", type=Path, default=Path(tempfile.gettempdir()) / "dfine_reading", help="for the files"
    )
    parser.add_argument(
        "--skip-json", action="store_true", help="leave json.load out, which takes 18 GB for the largest"
    )
    parser.add_argument("--measure", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure[0], Path(args.measure[1]))
        return
    print(f"{'images':>9} {'MB':>6}  {'':<10} {'CPU s':>7} {'wall s':>7} {'of json.load':>13} {'peak MiB':>9}")
    for images in (() if args.only_large else SIZES) + ((LARGE,) if args.large or args.only_large else ()):
        args.root.mkdir(parents=True, exist_ok=True)
        file = make(args.root, images)
        taken: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(1 if images == LARGE else args.rounds):
            with tempfile.TemporaryDirectory(dir=args.root) as cache:
                for way in WAYS[args.skip_json :]:
                    command = [sys.executable, __file__, "--measure", way, str(file)]
                    root = str(Path(__file__).resolve().parent.parent)
                    environment = {**os.environ, "DFINE_CACHE": cache, "PYTHONPATH": root}
                    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                    taken[way].append(json.loads(answer.stdout))
        middle = {
            way: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for way, runs in taken.items()
            if runs
        }
        for way, found in middle.items():
            ratio = f"{found['cpu_s'] / middle['json.load']['cpu_s']:.2f}" if "json.load" in middle else "-"
            print(
                f"{images:>9} {file.stat().st_size / 1e6:>6.0f}  {way:<10} {found['cpu_s']:>7.2f} "
                f"{found['wall_s']:>7.2f} {ratio:>13} {found['peak_mib']:>9.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
