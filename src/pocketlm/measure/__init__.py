"""Quality, time, memory, energy and the machine: every figure of a report comes from here."""
