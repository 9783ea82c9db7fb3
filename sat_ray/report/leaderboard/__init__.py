"""From outcomes to ranked rows, their statistics and the headline."""
