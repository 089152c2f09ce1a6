"""A latency predictor of a device of one's own, from measurements: this machine, or one that is reached over SSH.

    python examples/your_own_device.py              # this machine
    python examples/your_own_device.py box.yaml     # a device described in a file, see the README

A calibration of 40 configurations takes three to four minutes; here 10 are enough to see how it goes.
"""

import sys

from lownas import calibrate, measure, predict
from lownas.search_space import PRESETS

if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    predictor = calibrate(target, samples=10, time_limit="60s", profiles="profiles")
    error = predictor.provenance["held_out_error"]
    print(f"{predictor.source}: held-out error {100 * error:.1f} %")
    config = PRESETS["cpubone_nano"]
    predicted = predict(config, target, profiles="profiles")
    measured = measure(config, target, time_limit="5s")
    print(f"predicted {predicted.latency_ms:.1f} ms ({predicted.low_ms:.1f} to {predicted.high_ms:.1f})")
    print(f"measured  {measured.undisturbed_ms:.1f} ms undisturbed, {measured.median_ms:.1f} ms under load (median)")
