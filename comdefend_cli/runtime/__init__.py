"""What the process has and may use: device, memory, threads, files, libraries of extras, guarded reading of foreign files."""
