"""What tests share: a proxy between two processes, peers that break the rules, waiting with a deadline."""
