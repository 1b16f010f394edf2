"""Updates: the loop of a stage, the learner that steps, and the path from groups to a step of RL.

No sampling and no task: groups, rankings and documents arrive drawn and scored.
"""
