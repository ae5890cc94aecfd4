"""Fitting, in PyTorch: backbones, cached features, the detector's contract, the loop, export."""

from __future__ import annotations

import os

# PyTorch's OpenMP threads wait for each other by spinning. On a machine busy with something else too, that made a
# fit several times slower; threads that spin briefly cost an idle one nothing measurable. OpenMP reads this once,
# when torch is first imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
