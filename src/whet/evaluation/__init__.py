"""Measurement of models and the statistics of a comparison: intervals, pass@k, paired tests.

Nothing here trains; reports and tables for a person are in report/ and cli/.
"""
