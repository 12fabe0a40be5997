"""Images of any origin in, shards of samples with content ids out."""
