"""Makes a data set from Majaj & Hong 2015 as Brain-Score packages it."""

from __future__ import annotations

import argparse
import sys

from migvis.data.majajhong2015 import SUBJECTS, import_majajhong2015
from migvis.errors import InputError


def _subject(text: str) -> tuple[str, str]:
    animal, separator, name = text.partition("=")
    if not (animal and separator and name):
        raise argparse.ArgumentTypeError(f"ANIMAL=NAME expected, got {text!r}")
    return animal, name


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0 done, 2 bad input."""
    parser = argparse.ArgumentParser(
        description="Make a data set from Majaj & Hong 2015 as Brain-Score packages it: selects sites by region and animal, "
        "averages repetitions, makes pictures grey and small, and splits by picture."
    )
    parser.add_argument("assembly", metavar="ASSEMBLY.nc", help="responses, such as assy_dicarlo_MajajHong2015_public.nc")
    parser.add_argument("stimuli", metavar="STIMULI.csv", help="table of the stimuli, such as image_dicarlo_hvm-public.csv")
    parser.add_argument("images", metavar="IMAGES.zip", help="their pictures, such as image_dicarlo_hvm-public.zip")
    parser.add_argument("--out", metavar="FILE.h5", required=True, help="data set to write; replaced if it exists")
    parser.add_argument("--masks", metavar="DIR", help="PNG per stimulus id, 0 outside the object: cuts out the background")
    parser.add_argument("--size", type=int, default=128, help="pixels per side (default: %(default)s)")
    parser.add_argument("--region", default="IT", help="region of the sites (default: %(default)s)")
    parser.add_argument(
        "--subjects",
        metavar="ANIMAL=NAME",
        nargs="+",
        type=_subject,
        default=list(SUBJECTS.items()),
        help=f"animals to take and what to call them (default: {' '.join('='.join(pair) for pair in SUBJECTS.items())})",
    )
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
        import_majajhong2015(
            arguments.assembly,
            arguments.stimuli,
            arguments.images,
            arguments.out,
            masks=arguments.masks,
            image_size=arguments.size,
            region=arguments.region,
            subjects=dict(arguments.subjects),
            fractions=arguments.split,
            seed=arguments.seed,
            report=lambda line: print(line, flush=True),
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
