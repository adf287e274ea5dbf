"""Results that a PACS can store."""
