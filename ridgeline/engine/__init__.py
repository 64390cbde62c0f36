"""The step loop and everything between text and tokens."""
