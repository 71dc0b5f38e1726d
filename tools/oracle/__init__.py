"""The oracle: random models of every family, run through transformers and compared with quintic.

See ``tools/README.md`` for how to run it.
"""
