"""A Kubernetes on one machine: built from Go modules, run without virtual machines or images."""
