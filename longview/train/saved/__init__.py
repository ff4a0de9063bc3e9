"""The folder of a run: its files, checkpoints, the exported model, upload to the hub."""
