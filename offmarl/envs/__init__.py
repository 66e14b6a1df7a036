"""Where experience comes from: batched environments and their adapters."""
