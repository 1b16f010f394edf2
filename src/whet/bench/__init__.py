"""`whet bench`: times whet beside its peers on the same workloads (docs/performance.md).

Holds the workloads, the sides and their comparison; nothing outside the command uses it.
"""
