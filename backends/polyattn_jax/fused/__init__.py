"""The engine as one kernel on TPU and GPU, through Pallas."""
