"""Computing on a device: precision, and images on their way there and back."""
