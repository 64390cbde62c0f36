"""Promises: objectives, goodput, burn rates, diagnosis."""
