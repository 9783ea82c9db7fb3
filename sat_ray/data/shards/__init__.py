"""Prepared datasets: Parquet shards with checksums and a manifest."""
