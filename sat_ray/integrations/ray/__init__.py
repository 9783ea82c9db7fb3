"""The only part that imports ray: sessions, plain tasks, Tune trials, Train sessions. What is computed is said by units and jobs."""
