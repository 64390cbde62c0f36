"""What happens next: requests, blocks, policies, the scheduler. Pure Python, no clock, no I/O."""
