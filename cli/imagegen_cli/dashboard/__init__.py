"""What `imagegen top` shows: pure functions of two looks at the fleet."""
