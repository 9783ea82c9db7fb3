"""Pictures: of the leaderboard, of curves, of single images."""
