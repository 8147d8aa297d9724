"""The rows of the table: one module for each thing that is measured.

Each has `measure`, which returns the finished sections and raises BenchFailed where a figure would mean nothing.
"""
