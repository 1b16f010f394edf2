"""Rollouts: problems become prompts, samples, scores and groups; which prompts come next; health.

Nothing here changes a weight: training/ does, and stages/ join the two.
"""
