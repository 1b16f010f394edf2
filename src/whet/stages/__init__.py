"""One module for each kind of stage, with `run(policy, stage, context)`: a short readable loop.

Stages never import one another; what two of them share is in training/ or rollout/.
"""
