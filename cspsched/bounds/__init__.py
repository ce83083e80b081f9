"""Certified lower bounds: one module per bound, and the checker that re-derives each."""

from cspsched.bounds.api import batch_floor, best_bound, certificates, quick_flow_bound_ns, solo_ns
from cspsched.bounds.certificate import Certificate
from cspsched.bounds.check import check_certificate
from cspsched.bounds.curve import latency_curve, makespan_curve
from cspsched.bounds.misses import fewest_misses, percentile_ns
from cspsched.bounds.parts.batches import BatchCount, batch_count_bound

__all__ = [
    "BatchCount",
    "Certificate",
    "batch_count_bound",
    "batch_floor",
    "best_bound",
    "certificates",
    "check_certificate",
    "fewest_misses",
    "latency_curve",
    "makespan_curve",
    "percentile_ns",
    "quick_flow_bound_ns",
    "solo_ns",
]
