"""The papers on one screen: FixMatch's step, the losses, and the merging of trusted labels."""
