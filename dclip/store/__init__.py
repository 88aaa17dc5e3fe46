"""Features on disk: paths and URLs, shards and their manifest, how they are written and read."""
