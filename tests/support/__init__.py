"""What tests share: small cities, nets, sweeps, servers and files."""
