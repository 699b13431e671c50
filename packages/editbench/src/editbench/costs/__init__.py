"""What work will cost before it is done: stages, devices and what they take of each other."""
