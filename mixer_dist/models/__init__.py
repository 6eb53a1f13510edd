"""MLP-Mixer: the model, its official checkpoint layout and its change of resolution."""
