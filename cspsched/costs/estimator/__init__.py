"""From the rows of an operator profile to a cost model with its error band and its domain."""

from cspsched.costs.estimator.band import Band, Domain, Estimate, Estimator
from cspsched.costs.estimator.profile import FittedProfile, fit_profile

__all__ = ["Band", "Domain", "Estimate", "Estimator", "FittedProfile", "fit_profile"]
