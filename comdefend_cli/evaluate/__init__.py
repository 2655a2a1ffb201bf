"""How much does it protect? Attacks, defences, the protocol of three threat models, and the report."""
