"""Data from files and the Hub: rows, their sources, and rankings (preferences).

No task and no verifier here: rows become problems in `whet.tasks`.
"""
