"""What every stage needs: params, files, the class table, how faults are told. Loads no torch."""
