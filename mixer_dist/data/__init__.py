"""From shards in storage to batches of uint8 images: order, fetch, decode, augment, stream."""
