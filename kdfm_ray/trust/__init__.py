"""Which pseudo labels can be trusted: confidence, clustering, agreement. Arrays in, subset out."""
