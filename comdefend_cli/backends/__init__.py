"""What computes the networks: PyTorch in bands, OpenVINO, Triton; also quantization and export."""
