"""Makes the synthetic data set: ray-traced stimuli with planted factors and two simulated subjects."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pydantic import ValidationError

from migvis.config import PRESETS, DataConfig
from migvis.data import load_dataset
from migvis.data.synthetic.stimuli import make_synthetic
from migvis.errors import InputError


def main(argv: list[str] | None = None) -> int:
    """Writes the data set and prints what is in it; returns the exit code."""
    defaults = PRESETS["quick"].data
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.h5", help="file to write")
    parser.add_argument("--size", type=int, default=defaults.image_size, help="pixels per side, 32 to 128 (default %(default)s)")
    parser.add_argument("--stimuli", type=int, default=defaults.stimulus_count, help="number of stimuli (default %(default)s)")
    parser.add_argument(
        "--objects", type=int, default=defaults.objects_per_category, help="objects per category, 1 to 8 (default %(default)s)"
    )
    parser.add_argument("--repetitions", type=int, default=defaults.repetitions, help="trials averaged (default %(default)s)")
    parser.add_argument(
        "--signal-to-noise",
        type=float,
        default=defaults.signal_to_noise,
        help="single-trial variance ratio (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of poses, tuning, noise and split (default %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        config = DataConfig(
            image_size=arguments.size,
            stimulus_count=arguments.stimuli,
            objects_per_category=arguments.objects,
            repetitions=arguments.repetitions,
            signal_to_noise=arguments.signal_to_noise,
            split=defaults.split,
            seed=arguments.seed,
        )
        dataset = load_dataset(make_synthetic(config, arguments.out))
    except ValidationError as error:
        first = error.errors()[0]
        print(f"error: {'.'.join(map(str, first['loc']))}: {first['msg']}, got {first['input']}", file=sys.stderr)
        return 2
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = ", ".join(f"{name} {len(rows)}" for name, rows in dataset.split.items())
    print(f"{arguments.out}: {len(dataset.stimuli.id)} stimuli of {arguments.size} px ({sizes}); digest {dataset.digest[:12]}")
    for subject in dataset.subjects.values():
        print(f"subject {subject.name}: {subject.response.shape[1]} units")
    return 0


if __name__ == "__main__":
    sys.exit(main())
