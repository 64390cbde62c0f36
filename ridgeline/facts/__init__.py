"""What is: models, hardware, file headers, byte and flop formulas. Standard library only."""
