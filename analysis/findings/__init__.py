"""What tables say, in computed sentences with their intervals: answers and findings."""
