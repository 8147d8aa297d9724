"""Middleware: layers around a run, around each call of a model and around each call of a tool, like those of an onion.

The outermost sees a call first and its outcome last. With none configured there is nothing on the way.
"""
