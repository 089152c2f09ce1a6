"""Five searches whose outcomes must not change when the code is only rearranged, and two that go on with older runs.

    python experiments/equality/run.py --record        # writes recorded.json, at a commit that is known to be right
    python experiments/equality/run.py                 # searches again and compares; exit code 1 for any difference
    python experiments/equality/run.py --older FOLDER  # resumes copies of the runs that --keep FOLDER left earlier

A shipped profile, `--workers 0`, pinned epochs and a proxy budget so small that the least training is chosen make a
search depend on its settings alone. What is compared: every trial with its candidate, seed, accuracy, latency and
status, the ranking, the answer and the front. Left out are wall times, the wording of notes, and facts that the record
does not have. Accuracies are those of one machine's torch build: record and compare on the same one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("recorded.json")
COMMON = ("--workers", "0", "--proxy-epochs", "1", "--proxy-budget", "1s", "--json")
SEARCHES = {
    "budget": ("--target", "rtx3090", "--latency-budget", "2ms", "--trials", "10", "--repeats", "2"),
    "front": ("--target", "rtx3090", "--pareto", "--space", "tiny", "--trials", "10", "--repeats", "2"),
    "own data": (
        *("--target", "i7-12700h", "--latency-budget", "2ms", "--space", "tiny", "--data", "digits"),
        *("--trials", "18", "--repeats", "2", "--seed", "1"),
    ),
    "limits": (
        *("--target", "rtx3090", "--latency-budget", "2ms", "--also", "i7-12700h=40ms", "--max-params", "9M"),
        *("--max-macs", "2G", "--trials", "8", "--repeats", "1"),
    ),
    "tpe": (
        *("--target", "i7-12700h", "--latency-budget", "2ms", "--space", "tiny", "--data", "digits"),
        *("--strategy", "tpe", "--rungs", "1", "--trials", "12", "--repeats", "2"),
    ),
}
OLDER = {"own data": 7, "budget": 4}  # runs that were given fewer trials, and how many
LEFT_OUT = {"seconds", "images_per_second", "expected_seconds", "run", "notes"}


def search(arguments: tuple[str, ...], run: Path) -> dict[str, Any]:
    """Runs a search in a process of its own; gives what is compared of its outcome and its trials."""
    command = [sys.executable, "-m", "lownas.nas", *arguments, *COMMON, "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip().splitlines()[-1]}")
    trials = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    return compared({"outcome": json.loads(done.stdout), "trials": trials})


def compared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: compared(inner) for key, inner in value.items() if key not in LEFT_OUT}
    return [compared(inner) for inner in value] if isinstance(value, list) else value


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two values differ, at most one line for each place; numbers to nine digits."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in before
            if key not in LEFT_OUT
            for line in differences(before.get(key), now.get(key), f"{where}.{key}")
        ]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
    if isinstance(before, float) and isinstance(now, float) and abs(before - now) <= 1e-9 * abs(before):
        return []
    return [] if before == now else [f"{where}: {before!s:.80} became {now!s:.80}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--keep", type=Path, help="also leave shorter runs there, for a later version to resume")
    parser.add_argument("--older", type=Path, help="resume copies of the runs there")
    parser.add_argument("--only", choices=SEARCHES, nargs="+", default=list(SEARCHES))
    given = parser.parse_args()
    recorded = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    different = 0

    def compare(name: str, found: dict[str, Any]) -> None:
        nonlocal different
        lines = differences(recorded[name], found)
        different += bool(lines)
        print(f"{name}: {'equal' if not lines else f'{len(lines)} differences'}", *lines[:10], sep="\n  ", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        for name in given.only if given.older is None else ():
            found = search(SEARCHES[name], Path(scratch) / name.replace(" ", "-"))
            if given.record:
                recorded[name] = found
                RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
                print(f"{name}: recorded", flush=True)
            else:
                compare(name, found)
        for name, trials in OLDER.items():
            folder = name.replace(" ", "-")
            if given.keep is not None:
                search((*SEARCHES[name], "--trials", str(trials), "--repeats", "0"), given.keep / folder)
            if given.older is not None:
                shutil.copytree(given.older / folder, Path(scratch) / f"older-{folder}")
                wanted = dict(zip(SEARCHES[name][::2], SEARCHES[name][1::2], strict=True))
                more = ("--trials", wanted["--trials"], "--repeats", wanted["--repeats"], "--resume")
                found = search(more, Path(scratch) / f"older-{folder}")
                known = f"resumed {name}"
                if given.record:
                    recorded[known] = found
                    RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
                else:
                    compare(known, found)
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
