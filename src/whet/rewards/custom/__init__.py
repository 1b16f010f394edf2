"""Your own reward function: the side that asks, and the worker that imports and calls it.

No user's code is imported or runs in the process that trains.
"""
