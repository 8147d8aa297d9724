"""The bench of memory: how well recall finds what answers a question, how fast, and what that costs to build.

`python -m bench.memory` starts a Postgres of its own in a temporary directory. Quality is measured on generated
conversations and documents in two languages, of which the answers are known; speed on a hundred thousand memories of
one org; with `--million` on a million of a thousand orgs. Exact searches and plain Postgres stand beside our figures.
All is seeded: two runs have the same texts, questions and vectors.
"""
