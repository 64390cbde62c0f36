"""Traffic: arrival processes, length distributions, traces, prompts."""
