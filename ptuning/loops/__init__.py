"""Layer 4: the training loop and the generation loop; neither knows the other."""
