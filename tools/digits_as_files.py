"""Writes test images of the digits as PNG files, named by what they show.

As `python tools/digits_as_files.py runs/digits_images --count=12`.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def main():
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path, help="where to")
    parser.add_argument("--count", type=int, default=12, help="how many; default: %(default)s")
    given = parser.parse_args()

    from deit_tf import config, source

    records = source.open_source(config.DataConfig(), training=False).eval
    given.folder.mkdir(parents=True, exist_ok=True)
    count = min(given.count, len(records))
    for i, row in enumerate(records.__getitems__(list(range(count)))):
        (given.folder / f"{i:03d}_shows_{row['label']}.png").write_bytes(row["image"])


if __name__ == "__main__":
    main()
