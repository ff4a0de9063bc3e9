"""What lies in the folder of a run: its files, checkpoints, the exported model, the way to the hub."""
