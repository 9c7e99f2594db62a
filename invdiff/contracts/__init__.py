"""Rules that every operator, prior and sampler keeps, as functions that anyone can run on one of their own.

    from invdiff.contracts import check_operator, check_prior, check_sampler

    check_operator(MyOperator(), image_shape=(1, 32, 32))

Each raises AssertionError with the broken rule and its mend; `operator_checks`, `prior_checks` and `sampler_checks`
give the rules one by one. All run on the CPU in seconds, except the one that moves an operator to a GPU.
"""

from invdiff.contracts.compare import NotApplicable
from invdiff.contracts.law import check_posterior
from invdiff.contracts.operator import check_operator, operator_checks
from invdiff.contracts.prior import check_prior, prior_checks
from invdiff.contracts.sampler import check_pair, check_sampler, sampler_checks

__all__ = [
    "NotApplicable",
    "check_operator",
    "check_pair",
    "check_posterior",
    "check_prior",
    "check_sampler",
    "operator_checks",
    "prior_checks",
    "sampler_checks",
]
