"""Extraction: after a run, what of its turn matters later becomes memories.

A background job reads the turn (`material.py`), asks a model for candidates (`candidates.py`), judges what each of them
rests on (`trust.py`), compares them with what is known already (`reconciliation.py`) and keeps the outcome (`plan.py`).
It begins when the run is over and its caller has the answer; however it goes, the run is unhurt.
"""
