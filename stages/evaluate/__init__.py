"""Scores of edits: a judge's, an oracle's and pixel metrics, one row per (item, method), and the figures
from them.
"""
