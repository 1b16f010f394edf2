"""Mathematical answers: the verifier, exact numbers, and equivalence by algebra in workers.

No text is evaluated as a program, and no algebra runs in the process that trains.
"""
