"""What a hostile tester tried and what held: kept as tests, so that it holds after every change."""
