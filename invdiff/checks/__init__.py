"""Checks of a measurement before the run: does y look like what this operator measures of this prior's images?

    for finding in check_measurement(problem, prior):
        print(finding.words)

They cost one call of a network, A of five images (of two for an operator of the user's own), and some Fourier
transforms of y.
"""

from invdiff.checks.callables import calls_ahead, check_callable, one_at_a_time
from invdiff.checks.measurement import CHECKS, IMPOSSIBLE, check_measurement, measurement_checks
from invdiff.checks.sigma import estimate_sigma

__all__ = [
    "CHECKS",
    "IMPOSSIBLE",
    "calls_ahead",
    "check_callable",
    "check_measurement",
    "estimate_sigma",
    "measurement_checks",
    "one_at_a_time",
]
