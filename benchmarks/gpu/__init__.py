"""What a machine with a GPU makes of the engine: `bash benchmarks/gpu/run.sh` (docs/gpu.md)."""
