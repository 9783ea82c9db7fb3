"""What a sweep costs: estimated, limited, spent."""
