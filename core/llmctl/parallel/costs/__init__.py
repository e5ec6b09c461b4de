"""What a step costs: messages, bytes and seconds of a rank, by data sheets of devices. No paddle here."""
