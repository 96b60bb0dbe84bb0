"""What the method runs on: backends, memory, profiling, the environment, the doctor."""
