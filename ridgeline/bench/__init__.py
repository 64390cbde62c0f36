"""Load generation, measurements, reports."""
