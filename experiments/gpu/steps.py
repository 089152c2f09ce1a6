"""Runs one step of the GPU script, and says what became of all of them; `run.sh` is how they are run.

    python -m lownas.experiments.gpu.steps STEP              # into $OUT/STEP.json
    python -m lownas.experiments.gpu.steps --summary FILE    # into $OUT/summary.json

A step's exit code: 0 done, 3 skipped, 1 failed; `timeout` makes it 124, or 137 where it had to be killed.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lownas.experiments.gpu.record import Record, Skipped, one_line, write_json
from lownas.experiments.gpu.sizes import REAL, REHEARSED, Sizes, there

DONE, FAILED, SKIPPED = 0, 1, 3
TIMED_OUT = (124, 137)
_PRODUCT = ("torch", "numpy", "pydantic", "psutil")  # without these hardly anything of the package runs


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        module: of this folder, that has a function of the step's name: (record, sizes) to one line on what was found.
        needs: packages that it cannot run without.
    """

    module: str
    needs: tuple[str, ...]

    def load(self, name: str) -> Callable[[Record, Sizes], str]:
        """The step's function."""
        found: Callable[[Record, Sizes], str] = getattr(
            importlib.import_module(f"lownas.experiments.gpu.{self.module}"), name
        )
        return found


STEPS: dict[str, Step] = {
    "doctor": Step("machine", ("torch",)),
    "presets": Step("latency", _PRODUCT),
    "calibration": Step("calibrating", (*_PRODUCT, "yaml", "scipy", "rich")),
    "held_out": Step("calibrating", (*_PRODUCT, "yaml")),
    "proxy": Step("training", (*_PRODUCT, "safetensors", "yaml", "scipy")),
    "final": Step("training", (*_PRODUCT, "safetensors", "yaml", "scipy", "filelock")),
    "workers": Step("sharing", (*_PRODUCT, "safetensors", "yaml", "scipy")),
    "compile": Step("latency", _PRODUCT),
    # For tests of the script itself:
    "works": Step("misbehaving", ()),
    "hangs": Step("misbehaving", ()),
    "raises": Step("misbehaving", ()),
    "dies": Step("misbehaving", ()),
    "lacks": Step("misbehaving", ("no_such_package", "json", "nor_this_one")),
    "misses": Step("misbehaving", ()),
}


class TimeIsUp(BaseException):
    """The step is told to end."""


def run(name: str, folder: Path) -> int:
    """Runs a step and keeps what became of it; gives the exit code."""
    standin = os.environ.get("LOWNAS_GPU_STANDIN", "")
    if standin not in ("", "cpu"):
        print(f"LOWNAS_GPU_STANDIN: cpu or nothing, given {standin!r}", file=sys.stderr)
        return FAILED
    sizes = REHEARSED if standin else REAL
    limit_s = float(os.environ.get("LOWNAS_GPU_STEP_ENDS", time.time() + 3600)) - time.time()
    record = Record(name, folder, limit_s, device=sizes.device, rehearsal=bool(standin))
    _end_on_sigterm()
    if standin:
        _rehearse_alone()
    step = STEPS[name]
    missing = [package for package in step.needs if not there(package)]
    try:
        if missing:
            raise Skipped(f"not installed: {', '.join(missing)}")
        said = step.load(name)(record, sizes)
    except Skipped as why:
        return _ended(record, name, SKIPPED, "skipped", str(why))
    except TimeIsUp:
        told = f"told to end after {limit_s - record.left_s:.0f} s"
        return _ended(record, name, TIMED_OUT[0], "timed out", told, traceback.format_exc())
    except Exception as error:  # whatever it is, the next step must run and this one be understood afterwards
        if isinstance(error, ModuleNotFoundError) and (error.name or "lownas").split(".")[0] != "lownas":
            return _ended(record, name, SKIPPED, "skipped", f"not installed: {error.name}", traceback.format_exc())
        traceback.print_exc()
        return _ended(record, name, FAILED, "failed", one_line(error), traceback.format_exc())
    record.end("done", said=said)
    print(f"{name}: {said} ({record.document['seconds']:.0f} s)", flush=True)
    return DONE


def _rehearse_alone() -> None:
    """Lets a rehearsal go on beside measurements and trainings on this machine: its own times are worth nothing."""
    from lownas.evaluators.device.agent import lock

    lock.LOCK = Path(tempfile.gettempdir()) / "lownas.lock"


def _end_on_sigterm() -> None:
    def end(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what cleans up must not be broken off
        raise TimeIsUp

    signal.signal(signal.SIGTERM, end)
    faulthandler.register(signal.SIGTERM, chain=True)  # where it was, even if it is in a library that does not return


def _ended(record: Record, name: str, code: int, status: str, why: str, where: str = "") -> int:
    record.end(status, why=why, **({"traceback": where.splitlines()} if where else {}))
    print(f"{name}: {status}: {why}", flush=True)
    return code


# --- what became of all


def summary(outcomes: Path, folder: Path) -> dict[str, Any]:
    """What became of each step, from what `run.sh` saw and what the steps have written.

    Args:
        outcomes: a line for each step: name, exit code ("none": never begun), seconds, limit, the log's last line.
    """
    steps = [_outcome(line.split("\t"), folder) for line in outcomes.read_text().splitlines()]
    began = float(os.environ.get("LOWNAS_GPU_BEGAN", time.time()))
    doctor = _read(folder / "doctor.json")
    return {
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began),
        "rehearsal": bool(os.environ.get("LOWNAS_GPU_STANDIN")),
        "gpu": doctor.get("torch", {}).get("gpu"),
        "steps": steps,
    }


def _outcome(fields: list[str], folder: Path) -> dict[str, Any]:
    name, code, seconds, limit, *last = fields
    said = _read(folder / f"{name}.json")
    row: dict[str, Any] = {"step": name}
    if code == "none":
        return row | {"status": "no time"}
    row |= {"seconds": int(seconds), "limit_s": int(limit)}
    if said.get("status") == "done":  # whatever came of the process afterwards
        return row | {"status": "done", "said": said.get("said", "")}
    if said.get("status") == "skipped":
        return row | {"status": "skipped", "why": said.get("why", "")}
    if int(code) in TIMED_OUT and int(seconds) >= int(limit) - 1:
        return row | {"status": "timed out", "why": f"after {limit} s"}
    why = said.get("why") or (last[0] if last and last[0] else f"exit code {code}")
    return row | {"status": "failed", "why": why, "exit_code": int(code)}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def main(arguments: list[str]) -> int:
    """Runs a step, or sums all up; gives the exit code."""
    folder = Path(os.environ.get("OUT", Path(__file__).with_name("results")))
    folder.mkdir(parents=True, exist_ok=True)
    if len(arguments) == 2 and arguments[0] == "--summary":
        document = summary(Path(arguments[1]), folder)
        write_json(folder / "summary.json", document)
        for step in document["steps"]:
            detail = step.get("why") or step.get("said") or ""
            print(f"{step['step']:12} {step['status']:10} {step.get('seconds', 0):4} s  {detail}")
        return FAILED if any(step["status"] == "failed" for step in document["steps"]) else DONE
    if len(arguments) != 1 or arguments[0] not in STEPS:
        print(f"one step is expected: {', '.join(STEPS)}; given {' '.join(arguments) or 'none'}", file=sys.stderr)
        return 2
    return run(arguments[0], folder)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # all is written: libraries that clean up slowly or for ever must not take the next step's time
