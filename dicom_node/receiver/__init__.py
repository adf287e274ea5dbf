"""The Storage SCP: takes associations, validates every object, and answers Success only for what is durable."""
