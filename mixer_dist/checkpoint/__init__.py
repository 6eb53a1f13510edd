"""Checkpoints: flat fp32 pieces in safetensors files, committed by one manifest."""
