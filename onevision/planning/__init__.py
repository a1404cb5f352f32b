"""Cost of a prompt before it is run, speed of this machine, and budgets that fit a time."""
