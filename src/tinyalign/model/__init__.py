"""What computes: config, model, processor, connectors, Perceiver and backbones."""
