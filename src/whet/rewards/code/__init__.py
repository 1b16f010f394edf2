"""Programs: the verifier, how a worker grades one, and choosing among many programs.

No program runs here: the sandbox runs it, and its output is compared outside.
"""
