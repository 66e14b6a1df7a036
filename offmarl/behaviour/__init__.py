"""Who acts when data is collected."""
