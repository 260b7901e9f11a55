"""The network: configuration, attention, positions, linears, prefix encoder, backbone, head, loss."""
