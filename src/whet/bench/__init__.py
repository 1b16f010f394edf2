"""`whet bench`: times whet beside its peers on the same workloads (docs/understand/speed.md).

Holds the workloads, the sides and their comparison; nothing outside the command uses it.
"""
