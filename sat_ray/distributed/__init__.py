"""The only part that imports ray: sessions, plain tasks, Tune trials, Train sessions. What is computed is said by sat_ray.plan and jobs."""
