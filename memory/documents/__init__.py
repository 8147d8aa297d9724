"""The knowledge base: documents that people upload, as passages that can be recalled and cited.

A document's bytes go to the blob store, its row says what is known of it (`store`), a background job reads it
(`ingest`): a child process takes the file apart (`parsing`, `child`, `readers`), cuts it into passages along its own
structure (`passages`), and the passages become memories of kind `knowledge`. What can't be read is refused in words
(`refusals`), and then nothing of it is kept.
"""
