"""Everything that the method runs on: backends, memory, profiling, environment, the doctor."""
