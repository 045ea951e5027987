"""What tables say, in computed sentences with their intervals: answers, findings, predictions."""
