"""The Ray wing: each stage as a job or task that asks for its resources."""
