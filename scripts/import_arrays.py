"""Makes a data set from any laboratory's arrays: responses, pictures and, where there are any, labels."""

from __future__ import annotations

import argparse
import sys

import numpy as np

from migvis.data.arrays import dataset_from_arrays, read_array, read_images, read_responses
from migvis.errors import InputError


def _named_responses(files: list[str], names: list[str]) -> dict[str, np.ndarray]:
    """Responses by subject; given names replace those of the archives, and files without names become M1, M2, …"""
    arrays = [pair for file in files for pair in read_responses(file).items()]
    if names and len(names) != len(arrays):
        raise InputError(f"--subject: one name per array of responses expected, {len(arrays)}, got {len(names)}")
    chosen = names or [name or f"M{number}" for number, (name, _) in enumerate(arrays, start=1)]
    if len(set(chosen)) < len(chosen):
        raise InputError(f"--subject: different names expected, got {', '.join(chosen)}")
    return {name: array for name, (_, array) in zip(chosen, arrays, strict=True)}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        description="Make a data set from arrays. Row i of every array belongs to picture i. Labels are optional: without "
        "them the groups they would supervise are fitted without supervision."
    )
    parser.add_argument(
        "--responses",
        metavar="FILE",
        action="append",
        required=True,
        help=".npy of [stimuli, units], or [repetitions, stimuli, units] to be averaged (NaN rows: not shown); or .npz of "
        "such arrays, one per subject, by name; repeatable",
    )
    parser.add_argument(
        "--subject",
        metavar="NAME",
        action="append",
        default=[],
        help="name of the subject of each --responses in turn; repeatable (default: names in the .npz, else M1, M2, …)",
    )
    parser.add_argument(
        "--images",
        metavar="FILE.npy|DIR",
        required=True,
        help="uint8, or float in 0…1, [stimuli, H, W] or [stimuli, H, W, 3]; or a folder of pictures, in order of name",
    )
    parser.add_argument("--category", metavar="FILE.npy", help="category of each stimulus: names or whole numbers")
    parser.add_argument("--object", metavar="FILE.npy", help="object of each stimulus: names or whole numbers")
    parser.add_argument("--pose", metavar="FILE.npy", help="[stimuli, 6]: rxy rxz ryz (degrees), s, ty, tz")
    parser.add_argument("--out", metavar="FILE.h5", required=True, help="data set to write; replaced if it exists")
    parser.add_argument("--size", type=int, help="pixels per side, a multiple of 8 (default: as the pictures are)")
    parser.add_argument(
        "--split",
        metavar=("TRAIN", "VALIDATION", "TEST"),
        nargs=3,
        type=float,
        default=(0.7, 0.1, 0.2),
        help="fractions of the distinct pictures (default: 0.7 0.1 0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        images, names = read_images(arguments.images, arguments.size)
        dataset = dataset_from_arrays(
            arguments.out,
            _named_responses(arguments.responses, arguments.subject),
            images,
            category=None if arguments.category is None else read_array(arguments.category),
            object_label=None if arguments.object is None else read_array(arguments.object),
            pose=None if arguments.pose is None else read_array(arguments.pose),
            stimulus_id=names,
            image_size=arguments.size,
            fractions=arguments.split,
            seed=arguments.seed,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, subject in dataset.subjects.items():
        print(f"subject {name}: {subject.response.shape[1]} units, {subject.n_repetitions.sum()} repetitions in all")
    labels = [name for name in ("category_id", "object_id", "pose") if getattr(dataset.stimuli, name) is not None]
    print(f"labels: {', '.join(labels) or 'none, so no group will be supervised'}")
    sizes = ", ".join(f"{name} {len(indices)}" for name, indices in dataset.split.items())
    print(f"{len(dataset.picture_id)} stimuli, {dataset.picture_id.max() + 1} distinct pictures; split: {sizes}")
    print(f"{dataset.path}: written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
