"""Training: the loop, checkpoints, run folders and the command line. Start reading at `trainer`."""
