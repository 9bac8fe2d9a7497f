"""What wraps a training step."""
