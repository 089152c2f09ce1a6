"""A small search on pictures of digits, for a GPU that need not be here.

    python examples/search_on_your_data.py

It takes about a minute, and leaves the run folder runs/digits.
"""

from lownas.search import EvaluationResult, search


def tell(trial: EvaluationResult) -> None:
    reached = "" if trial.accuracy is None else f", accuracy {trial.accuracy:.2f}"
    print(f"trial {trial.trial}: {trial.status}{reached}, {trial.latency_ms:.2f} ms")


if __name__ == "__main__":
    result = search(
        target="i7-12700h",
        latency_budget="3ms",
        space="tiny",
        data="digits",  # or "imagefolder:pictures", or (images, labels)
        proxy_budget="20s",
        trials=9,
        repeats=1,
        workers=0,
        run="runs/digits",
        callback=tell,
    )
    for note in result.notes:
        print("-", note)
    if result.answer is not None:
        model = result.answer.build()  # a torch module with fresh weights
        print(f"{result.answer.config.id}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
        print(*result.export("onnx", "config"), result.report(), sep="\n")
    print(f"{len(result.to_records())} candidates were trained, {len(result.front)} of them are on the front")
