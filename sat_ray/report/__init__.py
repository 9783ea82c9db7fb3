"""Leaderboard, statistics, figures and the report page: pure projections of evaluated models. Imports neither ray nor mlflow."""
