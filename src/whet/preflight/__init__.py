"""Forecasts a run before it starts: faults of the recipe, memory and time.

Nothing here changes a run's directory, and no run depends on it: only the command line imports it.
"""
