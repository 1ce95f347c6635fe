"""What lies on disk: model folders, safetensors headers, element types, architectures. Reads no weight."""
