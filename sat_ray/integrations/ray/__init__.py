"""The only package that imports ray: sessions, plain tasks, Tune trials, Train sessions.

What is computed is described by the tasks and tasks of `sat_ray.sweep`.
"""
