"""A language model as the verifier, in this process or behind an endpoint, and its verdicts' cache.

No answer can speak to the judge, and no key is kept or logged.
"""
