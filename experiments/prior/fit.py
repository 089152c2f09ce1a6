"""Fits the accuracy prior that is shipped, on published results of other families.

    python experiments/prior/fit.py --published FOLDER [--cache FOLDER]

Needs timm. FOLDER holds timm-imagenet.csv (see README.md). Writes predictors/accuracy/imagenet.json; what the held-out
errors are is measured by held_out.py, whose results.json is quoted in the provenance.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hierarchical import Fitted
from rows import Rows, load_rows

WORK = Path(__file__).with_name("work")
RESULTS = Path(__file__).with_name("results.json")
PRIOR = Path(__file__).resolve().parents[2] / "predictors" / "accuracy" / "imagenet.json"


def provenance(rows: Rows) -> dict[str, Any]:
    """What the prior rests on."""
    found: dict[str, Any] = {
        "source": "timm's ImageNet results (huggingface/pytorch-image-models, Apache-2.0), networks trained on "
        "ImageNet-1k alone, without a teacher, of 0.08 to 18 GMACs",
        "rows": len(rows),
        "families": len(set(rows.family.tolist())),
        "families_and_recipes": len(set(rows.group.tolist())),
    }
    if RESULTS.exists():
        found["held_out"] = json.loads(RESULTS.read_text()).get("summary", {})
    return found


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all scripts here share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, help="folder with timm-imagenet.csv")
    parser.add_argument("--cache", type=Path, default=WORK, help="folder for traced graphs")
    return parser


def main() -> None:
    given = arguments(__doc__).parse_args()
    try:
        rows = load_rows(given.published, given.cache)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    Fitted(rows).law(provenance(rows)).save(PRIOR)
    print(f"{len(rows)} rows; wrote {PRIOR}")


if __name__ == "__main__":
    main()
