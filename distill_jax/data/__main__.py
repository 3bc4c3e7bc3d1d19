"""Downloads a data set: ``python -m distill_jax.data mnist``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from distill_jax._text import printable
from distill_jax.data.datasets import MIRROR, download


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m distill_jax.data", description=__doc__)
    parser.add_argument("name", choices=["mnist"], help="the data set")
    where = "where to put it (by default into the cache, below ~/.cache or $XDG_CACHE_HOME)"
    parser.add_argument("--to", metavar="FOLDER", help=where)
    parser.add_argument("--url", default=MIRROR, help="where the files are (default %(default)s)")
    args = parser.parse_args(argv)
    try:
        place = download(args.name, to=args.to, url=args.url)
    except (OSError, ValueError) as error:
        print(f"error: {printable(str(error), sys.stderr.encoding)}", file=sys.stderr)
        return 1
    print(f"{args.name} is in {printable(str(place), sys.stdout.encoding)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
