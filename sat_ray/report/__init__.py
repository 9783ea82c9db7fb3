"""Leaderboard, statistics, figures and pages: pure functions of evaluated models and records."""
