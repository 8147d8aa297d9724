"""Questions over data that is not ours: an org's Postgres databases and the files of a session. What may be asked is
read-only, bounded in time, rows and bytes, and is answered where it can do no harm.
"""
