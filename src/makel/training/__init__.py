"""Fitting, in PyTorch: backbones, cached features, the detector's contract, the loop, export."""

from __future__ import annotations

import os

# PyTorch's OpenMP threads wait for each other by spinning. Where another program wants the cores as well, that made a
# fit four to ten times slower; waking a thread after a short spin costs an idle machine nothing measurable. OpenMP reads
# this once, when torch is first imported.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "1000"
