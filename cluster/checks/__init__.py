"""Check the cluster's manifests without a cluster."""
