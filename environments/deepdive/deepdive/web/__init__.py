"""What lies behind the four tools: search, fetching, page text, the cache. Nothing here knows verifiers."""
