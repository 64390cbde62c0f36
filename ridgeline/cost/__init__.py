"""What it costs: the memory ledger and the cost model's providers."""
