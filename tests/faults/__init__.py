"""Faults put into a running sweep: real hosts, stores and servers on one machine, a table of
injections, what must hold after each.
"""
