"""Speed beside the peers: the same work, done by each side in a process of its own
(docs/performance.md).
"""
