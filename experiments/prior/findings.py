"""Sums up the judged searches, and draws what a MAC is worth by stage and what searches claimed before and claim now.

    python experiments/prior/findings.py        # seconds; writes judged.json and figure.svg

Needs matplotlib. Reads results.json (held_out.py) and judged.jsonl (judge.py).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fit import RESULTS
from judge import FORMER, JUDGED

HERE = Path(__file__).parent
SPLITS = (7,)
"""Divisions of the families that are reported; what is maximized was chosen on others (101)."""
UNEVEN = "7, uneven"
"""A division with the same number of modules in both halves, and 406 and 178 rows."""
JUDGES = ("same form", "other kind", "plain")
SHOWN = ("lowformer_b0", "lowformer_b1", "lowformer_b3", "lowformer_e1", "lowformer_e2", "lowformer_e3")
NAMES = {"0.1": "lower quantile (the default)", "mean": "mean estimate", FORMER: "former law"}


def cases(splits: Sequence[int | str]) -> list[dict[str, Any]]:
    return [case for line in JUDGED.read_text().splitlines() if (case := json.loads(line))["split"] in splits]


def statistics(values: Iterable[float]) -> dict[str, float]:
    found = np.array(list(values), dtype=np.float64)
    return {"mean": round(float(found.mean()), 2), "mean size": round(float(np.abs(found).mean()), 2)} | {
        "largest": round(float(found.max()), 2),
        "least": round(float(found.min()), 2),
    }


def sums(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """By what is maximized, of answers and of fronts: claims beside each judge, and judges beside published models."""
    networks: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for case in found:
        kind = "fronts" if case["budget_ms"] is None else "answers"
        networks[case["maximized"], kind] += case["networks"]
    result: dict[str, Any] = {}
    for (maximized, kind), rows in sorted(networks.items()):
        entry: dict[str, Any] = {"networks": len(rows)}
        for judge in JUDGES:
            entry[f"estimate minus {judge}"] = statistics(row["estimate"] - row[judge] for row in rows)
            if rows[0]["lower"] is not None:
                entry[f"lower quantile minus {judge}"] = statistics(row["lower"] - row[judge] for row in rows)
            known = [row for row in rows if row["published"]["top1"] is not None]
            ahead = [row[judge] - row["published"]["top1"] for row in known]
            entry[f"{judge} minus best published"] = statistics(ahead) | {
                "better": sum(value > 0 for value in ahead),
                "of": len(ahead),
            }
        result.setdefault(kind, {})[NAMES.get(maximized, f"quantile {maximized}")] = entry
    return result


def table(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers one by one, of the lower quantile and of the former law."""
    rows = []
    for case in found:
        if case["budget_ms"] is not None and case["maximized"] in ("0.1", FORMER):
            kept = {key: value for key, value in case["networks"][0].items() if key not in ("config", "id")}
            rows.append({key: case[key] for key in ("direction", "target", "budget_ms", "maximized")} | kept)
    return rows


def draw(results: dict[str, Any], found: Sequence[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "lownas"  # the same figure is the same file
    matplotlib.rcParams["font.size"] = 9
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
    for place, name in enumerate(SHOWN):
        entries = [entry for entry in results["one_more_block"] if entry["model"] == name]
        stages = np.array([entry["stage"] for entry in entries]) + 0.08 * (place - len(SHOWN) / 2)
        middle, low, high = np.array([entry["points"] for entry in entries]).T
        left.errorbar(
            stages,
            middle,
            [middle - low, high - middle],
            fmt="o",
            ms=3,
            lw=1,
            label=name.removeprefix("lowformer_").upper(),
        )
    left.axhline(0, color="grey", lw=0.5)
    left.set_xticks([1, 2, 3, 4], ["1 (stride 4)", "2 (8)", "3 (16)", "4 (32)"])
    left.set(xlabel="stage that gets one more block", ylabel="ImageNet top-1, points per 100 M MACs")
    left.set_title("What a MAC is worth, with 90 % intervals", fontsize=9)
    left.legend(frameon=False, ncol=2, fontsize=8)
    marks = {FORMER: ("x", "tab:red"), "0.1": ("o", "tab:blue")}
    for maximized, (mark, colour) in marks.items():
        rows = [n for case in found if case["maximized"] == maximized for n in case["networks"]]
        claimed = [row["estimate"] for row in rows]
        judged = [np.mean([row[judge] for judge in JUDGES[:2]]) for row in rows]
        right.plot(judged, claimed, mark, color=colour, ms=4, alpha=0.7, ls="", label=NAMES[maximized])
    ends = right.get_xlim()
    right.plot(ends, ends, color="grey", lw=0.5)
    right.set(xlabel="top-1 %, by judges from the other half of the families", ylabel="top-1 % that the search claims")
    right.set_title("Answers and fronts: what was claimed, and what judges say", fontsize=9)
    right.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    found = cases(SPLITS)
    if not found:
        raise SystemExit(f"{JUDGED.name} has no searches of division {SPLITS}: run judge.py first")
    summary = {
        "reported": sums(found),
        "uneven": sums(cases((UNEVEN,))),
        "chosen_on": sums(cases((101,))),
        "answers": table(found),
    }
    (HERE / "judged.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(json.loads(RESULTS.read_text()), found, HERE / "figure.svg")


if __name__ == "__main__":
    main()
