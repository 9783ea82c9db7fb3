"""The only part that imports ray: sessions, plain tasks, Tune trials, Train sessions. Tasks say what is computed."""
